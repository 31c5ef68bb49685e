"""Where do prediction and the target's compiler disagree on memory and time?

Run:     python -m experiments.predicted_against_compiled [--compile] [--json]
Takes:   seconds from results/; with --compile an hour of two CPU cores for what is not
         there.
Expect:  at least 24 points on TPUs and GPUs, two families, six kinds of layout; memory
         within 10 % in the median and step time within 15 %.

The points are those below and the published rows of `compiled_against_published` and
`gpu_prices`, which are compiled anyway. Predictions are made anew.
"""

import itertools
from typing import Any

import scaling_lab as lab
from experiments import _compiled as kept
from experiments import compiled_against_published, gpu_prices
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of

RESULTS = kept.RESULTS / "predicted_against_compiled.jsonl"
SAVE = "save:attention/attend,ffn/down"


def point(words: str, batch: int, length: int, remat: str) -> lab.RunConfig:
    """A point from ``family size target layout``."""
    family, size, target, layout = words.split()
    return lab.configure(
        *(family, size, layout, target), batch=batch, length=length, remat=remat
    )


CONFIGS = [
    point("llama 1b tpu-v5e:4x4 fsdp=8,tensor=2+sequence", 32, 2048, "full"),
    point("llama 8b tpu-v6e:4x4 fsdp=16", 32, 4096, "full"),
    point("gpt2 774m tpu-v6e:2x4 ddp", 16, 1024, "none"),
    point("gpt2 1.5b tpu-v5e:2x4 zero1", 16, 1024, SAVE),
    point("llama 1b tpu-v5p:2x2x2 data=2,fsdp=4", 32, 4096, SAVE),
    point("llama 8b tpu-v5p:4x4x4 fsdp=16,tensor=4+sequence", 64, 4096, "none"),
    point("llama 8b tpu-v5e:8x8 fsdp=64", 64, 4096, "full"),
    point("llama 1b h100:1x8 fsdp=4,tensor=2+sequence", 32, 4096, "none"),
    point("llama 8b h100:8x8 data=8,fsdp=8", 128, 4096, "full"),
    point("llama 8b h100:2x8 fsdp=2,tensor=8+sequence", 16, 8192, SAVE),
    point("gpt2 774m h100:1x8 ddp", 64, 1024, "none"),
    point("gpt2 1.5b a100:1x8 zero1", 32, 1024, "none"),
    point("llama 2-7b a100:2x8 fsdp=16", 32, 4096, SAVE),
]
#: Where and why they disagree, by what the points have in common.
WHY: dict[str, str] = {
    "step time on H100": "predicted 4 to 19 % longer but for DDP: prediction is fitted "
    "on clocks, most of eager PyTorch, whose elementwise steps each pass through "
    "memory; XLA fuses them. Against the clocks compiled lies lower, predicted higher",
    "gpt2 1.5b a100 zero1": "unless asked (gpu_prices.BESIDE) XLA puts no compute "
    "beside an A100's collectives: 0.09 of 0.46 s wait for them",
    "memory of llama 1b, 520m, 405b on TPUs": "10.7, 7.9 and 73 GB live at once, "
    "predicted 8 to 15 % more; the compiler lays them out in 1.3 to 1.5 times that",
    "llama 130m, 520m tpu-v5p": "heads of 64, which the kernel pads to 128 lanes as it "
    "does normalisers in float32; on the clock 0.227 s and 1.891 s, of another kernel",
    "gpt2 126m a100 ddp": "a step of 0.1 s, two fifths of it elementwise",
}


def main() -> None:
    given = kept.arguments(__doc__)
    found = kept.records(CONFIGS, RESULTS, compiles=given.compile)
    for other in (compiled_against_published, gpu_prices):
        found |= kept.records(other.CONFIGS, other.RESULTS)
    kept.say(answer(found), text, given.json)


def every() -> list[lab.RunConfig]:
    """The points of this experiment and of those whose rows are compiled anyway."""
    published = compiled_against_published.CONFIGS + gpu_prices.CONFIGS
    return list(itertools.chain(CONFIGS, published))


def answer(found: dict[str, Any]) -> dict[str, Any]:
    """Points with both memories and both times, and the median errors."""
    rows = [_row(config, found[config.id]) for config in every() if config.id in found]
    for name in ("bytes", "seconds"):
        for row in rows:
            both = row[f"predicted_{name}"], row[f"compiled_{name}"]
            row[f"{name}_ratio"] = both[0] / both[1] if all(both) else None
    groups = {"all": rows}
    for kind in ("TPU", "GPU"):
        groups[kind] = [row for row in rows if row["machine"] == kind]
    return {
        "rows": rows,
        "errors": {
            group: {
                name: kept.errors(
                    row[f"{name}_ratio"] for row in some if row[f"{name}_ratio"]
                )
                for name in ("bytes", "seconds")
            }
            for group, some in groups.items()
        },
        "why": WHY,
    }


def _row(config: lab.RunConfig, found: Any) -> dict[str, Any]:
    column = found.compiled or {}
    said = predict(points_of([config])).row(0)
    return {
        "family": config.family,
        "size": config.size,
        "target": config.target,
        "machine": "TPU" if config.target.startswith("tpu") else "GPU",
        "layout": config.layout.name,
        "remat": config.remat.partition(":")[0],
        "status": found.status,
        "predicted_bytes": said["hbm_bytes"],
        "compiled_bytes": column.get("needed_bytes") or column.get("peak_bytes"),
        "predicted_seconds": said["step_seconds"],
        "compiled_seconds": column.get("step_seconds"),
        "predicted_parts": said["seconds"],
    }


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = [
        f"{'model':15} {'target':14} {'layout':26} {'remat':6}"
        f"{'GB predicted':>13} {'compiled':>9} {'ratio':>6} "
        f"{'s predicted':>12} {'compiled':>9} {'ratio':>6}"
    ]
    lines += [_line(row) for row in found["rows"]]
    for group, errors in found["errors"].items():
        lines.append(
            f"{group}: memory {kept.error_text(errors['bytes'])}; step time "
            f"{kept.error_text(errors['seconds'])}"
        )
    lines += [f"{where}: {why}" for where, why in found["why"].items()]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    def cells(name: str, unit: float, wide: tuple[int, int]) -> str:
        values = row[f"predicted_{name}"], row[f"compiled_{name}"]
        ratio = row[f"{name}_ratio"]
        said = [
            f"{value / unit:{width}.3f}" if value else " " * (width - 1) + "-"
            for value, width in zip(values, wide, strict=True)
        ]
        return " ".join([*said, f"{ratio:6.2f}" if ratio else "     -"])

    model = f"{row['family']} {row['size']}"
    place = f"{model:15} {row['target']:14} {row['layout'][:26]:26} {row['remat']:6}"
    return f"{place}{cells('bytes', 1e9, (13, 9))} {cells('seconds', 1.0, (12, 9))}"


if __name__ == "__main__":
    main()
