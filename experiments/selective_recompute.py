"""What does selective recomputation gain over making everything again?

Run:     python -m experiments.selective_recompute [--compile [--only 22B]] [--json]
Takes:   seconds; with --compile a minute or more of two CPU cores for each row.
Expect:  predicted steps within 12 % of all eight published ones; but gains of 40 to
         44 % where 29 to 32 % were published: one side is predicted a little long, the
         other a little short. On one node our program gains 22 %, compiled 10 %, since
         attention in one kernel leaves it less to make again; over stages it loses,
         and compiled its steps there take 1.3 to 2 times the published ones.

Source: Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer
Models (arXiv 2205.05198), tables 3 and 5.
"""

from experiments import _published as study
from experiments._compiled import RESULTS
from scaling_lab.models import gpt2

CONVENTIONS = (
    "Published are seconds of a step on A100s of 80 GB, eight a node: everything "
    "made again with tensor parallelism, against sequence parallelism with the core"
    " of attention alone made again. The published gain is the ratio of throughput."
)
PATH = RESULTS / "selective_recompute.jsonl"
LENGTH, VOCABULARY = 2048, 51_200
#: Name, layers, width, heads, stage, chunks of a stage, GPUs, batch, microbatch,
#: seconds with all made again, with selective recomputation.
TABLE = (
    ("22B", 48, 6144, 64, 1, 1, 8, 4, 4, 1.42, 1.10),
    ("175B", 96, 12_288, 96, 8, 3, 64, 64, 1, 18.13, 13.75),
    ("530B", 105, 20_480, 128, 35, 3, 280, 280, 1, 49.05, 37.83),
    ("1T", 128, 25_600, 160, 64, 1, 512, 512, 1, 94.42, 71.49),
)
FUSED = (
    "attention is one kernel and writes no scores, so that nothing of it is made "
    "again; positions are divided over tensor in both"
)
EACH_TICK = (
    "every tick, of one sequence, casts its stage's weights and adds their gradients "
    "to the sum in memory, and nothing hides the collectives over tensor"
)
ONE_IN_TURN = (
    "all that is kept of every microbatch fits no A100 by our other schedules (270 "
    "GB of 175B's), and our 1F1B spends FLOPs in ticks that have nothing to do (see"
    " `pipeline_schedules`)"
)


def _runs(
    name: str, layers: int, width: int, heads: int, stage: int, chunks: int, *rest
) -> list[study.Run]:
    chips, batch, micro, full, selective = rest
    sizes = {
        **{"model": f"GPT {name}", "data": 1, "tensor": 8, "stage": stage},
        **{"virtual_stages": chunks, "microbatch_seqs": micro},
        "global_batch_tokens": batch * LENGTH,
        "schedule": ("interleaved " * (chunks > 1) + "1F1B") if stage > 1 else "",
    }
    model = gpt2.Config(
        *(layers, width, heads, heads, width // heads, 4 * width, VOCABULARY),
        length=LENGTH,
    )
    mesh = f"stage={stage},tensor=8" if stage > 1 else "tensor=8"
    # Over chunks our stages divide the width too, and 35 does not divide 20,480.
    chunked = f"+interleaved={chunks}" * (chunks > 1 and width % stage == 0)
    found = []
    for remat, seconds, technique in (
        ("full", full, "TP without sequence parallel"),
        ("selective (core attention)", selective, "sequence parallel"),
    ):
        kept = remat != "full"
        schedule = "+1f1b" * (stage > 1) if kept else chunked
        ours = study.config(
            *(
                name.lower(),
                model,
                f"a100:{chips // 8}x8",
                f"{mesh}+sequence{schedule}",
            ),
            **{"batch": batch, "length": LENGTH, "precision": "bfloat16"},
            remat="none" if kept else "full",
            accumulate=batch // micro,
        )
        found.append(
            study.Run(
                f"{name} {remat.partition(' ')[0]}",
                study.gpt(layers, width, heads, chips, sizes)
                | {"remat": remat, "technique": technique},
                seconds,
                f"{seconds} s",
                ours,
                differs=_differs(kept, stage > 1),
                fitted=True,
            )
        )
    return found


def _differs(kept: bool, staged: bool) -> str:
    if not staged:
        return FUSED
    return f"{ONE_IN_TURN}; {EACH_TICK}" if kept else EACH_TICK


RUNS = [run for row in TABLE for run in _runs(*row)]
CONFIGS = study.configs(RUNS)


def main() -> None:
    study.main(__doc__, CONVENTIONS, RUNS, PATH, after=gains)


def gains(rows: list[dict]) -> str:
    """Of each model the gain in throughput, by every column that has both rows."""
    columns = ("published", "predicted", "our", "compiled")
    lines = ["gain of selective recomputation: published, predicted, ours, compiled"]
    for full, selective in zip(rows[::2], rows[1::2], strict=True):
        said = []
        for name in (f"{column}_seconds" for column in columns):
            both = full[name] and selective[name]
            said.append(f"{full[name] / selective[name] - 1:.1%}" if both else "–")
        lines.append(f"  {full['name'].partition(' ')[0]:5} {'  '.join(said)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
