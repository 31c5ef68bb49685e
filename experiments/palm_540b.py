"""Does PaLM 540B's step on two pods follow from arithmetic?

Run:     python -m experiments.palm_540b [--compile] [--json]
Takes:   seconds; with --compile, where results/palm_540b.jsonl has not the row, two
         minutes of two CPU cores.
Expect:  a predicted step within 10 % of the 17.6 s that its throughput says; ours
         longer, since its blocks wait for tensor twice.

Source: Chowdhery et al. 2022, PaLM: Scaling Language Modeling with Pathways (arXiv
2204.02311), section 4 and table 3.
"""

from experiments import _published as study
from experiments._compiled import RESULTS
from scaling_lab.hardware import chip
from scaling_lab.models import llama

CONVENTIONS = (
    "Published are 238.3 thousand tokens a second on 6144 TPU v4 at a batch of 2048"
    " sequences of 2048 tokens, 46.2 % of peak by 6 N and attention counted whole "
    "(57.8 % with what is made again). Each pod divides weights over 12 × 256 chips"
    " and has half the batch; gradients are summed between the two."
)
PATH = RESULTS / "palm_540b.jsonl"
#: Its vocabulary of 256,000 is eight rows larger here, so that twelve divide it.
MODEL = llama.Config(118, 18_432, 48, 1, 256, 73_728, 256_008, tied=True)
LENGTH, BATCH, CHIPS, RATE = 2048, 2048, 6144, 238.3e3
COLUMNS = {
    **{"model": "PaLM 540B", "framework": "jax", "params": 540.35e9, "layers": MODEL.L},
    **{"d_model": MODEL.D, "n_heads": MODEL.N, "kv_heads": 1, "head_dim": MODEL.H},
    **{"d_ff": MODEL.F, "mlp": "swiglu", "vocab": MODEL.V, "seq_len": LENGTH},
    **{"global_batch_tokens": BATCH * LENGTH, "hardware": "tpu-v4", "chips": CHIPS},
    **{"data": 2, "fsdp": 256, "tensor": 12, "stage": 1, "context": 1},
    **{"precision": "bf16", "remat": "full"},
}
BLOCKS = (
    "our blocks go one after another, attention and then feed-forward, where PaLM's"
    " go side by side and sum over tensor once instead of twice; a chip is two "
    "devices of half its memory, so that fsdp is 512 and a device's two sequences come "
    "one by one, each with a gather of all weights: 8.3 s of collectives wait, and "
    "gathered weights are written once more in another order (2.6 s)"
)
RUNS = [
    study.Run(
        "PaLM 540B",
        COLUMNS,
        BATCH * LENGTH / RATE,
        "238.3k tokens/s",
        study.config(
            *("palm-540b", MODEL, "tpu-v4:12x16x16*2", "data=2,fsdp=512,tensor=12"),
            **{"batch": BATCH, "length": LENGTH, "remat": "full", "accumulate": 2},
            precision="bfloat16",
            xla_flags=chip("tpu-v4").flags["overlap"],
        ),
        differs=BLOCKS,
    )
]
CONFIGS = study.configs(RUNS)


def main() -> None:
    study.main(__doc__, CONVENTIONS, RUNS, PATH)


if __name__ == "__main__":
    main()
