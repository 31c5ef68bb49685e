"""Does Megatron-LM's weak scaling from 1.7B to 1T parameters follow from arithmetic?

Run:     python -m experiments.megatron_weak_scaling [--compile [--only 18.4B]] [--json]
Takes:   seconds; with --compile a minute or more of two CPU cores for each row.
Expect:  all ten rows of Narayanan et al. 2021 within 10 % of what they took, though no
         efficiency was fitted to them; our own program, compiled, from a third faster
         without stages to a third slower with many and one sequence a microbatch.

Source: Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU
Clusters (SC21, arXiv 2104.04473), table 1; microbatches as in Megatron-LM's
examples/academic_paper_scripts/sc21/run_table_1.sh.
"""

from experiments import _published as study
from experiments._compiled import RESULTS
from scaling_lab.models import gpt2

CONVENTIONS = (
    "Published are TFLOP/s of a GPU with four passes through every layer, the one "
    "that is made again among them (hardware FLOPs): 96 B s l h² (1 + s/6h + "
    "V/16lh). Seconds follow from that. The GPUs are A100 of 80 GB, eight a node; "
    "all layers are made again; no schedule is interleaved."
)
PATH = RESULTS / "megatron_weak_scaling.jsonl"
LENGTH, VOCABULARY = 2048, 51_200
#: Name, layers, width, heads, tensor, stage, GPUs, batch, microbatch, TFLOP/s a GPU.
TABLE = (
    ("1.7B", 24, 2304, 24, 1, 1, 32, 512, 16, 137),
    ("3.6B", 30, 3072, 32, 2, 1, 64, 512, 16, 138),
    ("7.5B", 36, 4096, 32, 4, 1, 128, 512, 16, 142),
    ("18.4B", 40, 6144, 48, 8, 1, 256, 1024, 8, 135),
    ("39.1B", 48, 8192, 64, 8, 2, 512, 1536, 4, 138),
    ("76.1B", 60, 10_240, 80, 8, 4, 1024, 1792, 2, 140),
    ("145.6B", 80, 12_288, 96, 8, 8, 1536, 2304, 2, 148),
    ("310.1B", 96, 16_384, 128, 8, 16, 1920, 2160, 1, 155),
    ("529.6B", 105, 20_480, 128, 8, 35, 2520, 2520, 1, 163),
    ("1008B", 128, 25_600, 160, 8, 64, 3072, 3072, 1, 163),
)
FUSED = (
    "its attention is one kernel, where theirs wrote its scores to memory (a fifth "
    "of the smallest's step), and positions between the blocks are divided over "
    "tensor"
)
#: Read from the modules, by verb and axis.
EACH_TICK = (
    "every tick casts its stage's weights and adds their gradients to the sum in "
    "memory (2.3 of 145.6B's 27 s, 6.8 of 310.1B's 46), which one sequence of 2048 "
    "tokens does not pay for and our prediction does not count; nothing hides the "
    "collectives over tensor (4.2 and 6.7 s)"
)


def flops(layers: int, width: int, batch: int) -> float:
    """FLOPs of a step by the paper's formula (its equation 3)."""
    more = 1 + LENGTH / (6 * width) + VOCABULARY / (16 * layers * width)
    return 96 * batch * LENGTH * layers * width**2 * more


def _run(
    name: str, layers: int, width: int, heads: int, tensor: int, stage: int, *rest: int
) -> study.Run:
    chips, batch, micro, rate = rest
    data = chips // tensor // stage
    sizes = {"stage": stage, "data": data, "tensor": tensor}
    layout = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    layout += "+sequence" * (tensor > 1)
    columns = study.gpt(
        *(layers, width, heads, chips),
        {
            **{"model": f"GPT {name}", "data": data, "tensor": tensor, "stage": stage},
            **{"microbatch_seqs": micro, "global_batch_tokens": batch * LENGTH},
            "schedule": "1F1B" if stage > 1 else "",
            "remat": "full",
            "technique": "TP without sequence parallel",
        },
    )
    model = gpt2.Config(
        *(layers, width, heads, heads, width // heads, 4 * width, VOCABULARY),
        length=LENGTH,
    )
    ours = study.config(
        *(name.lower(), model, f"a100:{chips // 8}x8", layout),
        **{"batch": batch, "length": LENGTH, "remat": "full", "precision": "bfloat16"},
        accumulate=batch // data // micro,
    )
    return study.Run(
        name,
        columns,
        flops(layers, width, batch) / (chips * rate * 1e12),
        f"{rate} TFLOP/s a GPU",
        ours,
        differs=EACH_TICK if stage > 1 else FUSED,
    )


RUNS = [_run(*row) for row in TABLE]
CONFIGS = study.configs(RUNS)


def main() -> None:
    study.main(__doc__, CONVENTIONS, RUNS, PATH)


if __name__ == "__main__":
    main()
