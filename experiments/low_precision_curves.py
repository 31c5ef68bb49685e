"""What does low precision cost in loss, and what does it gain?

Run:     python -m experiments.low_precision_curves [--train] [--compile] [--json]
Takes:   seconds from results/; with --train some minutes of two CPU cores, with
         --compile one to three minutes a step, for what is not there.
Expect:  8-bit products, 8-bit moments and parameters rounded by chance all end within
         three times float32's spread over seeds; compiled, fp8 on an H100 and int8 on a
         v5p save time (1.32 and 1.17), int8 on a v6e costs a little, and moments in 8
         bits, bfloat16 parameters or moments on the host take 5 to 6 of 20 GB off a
         device: in 8 bits for 2 % of the step, on the host for as long again.

Each mode trains the same small Llama on the same text with three seeds. On a CPU codes
are multiplied as a chip would multiply them, so the loss is the mode's; its time is
not, and is not told. What it gains is asked of the compilers of machines that have the
units.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab import record

CURVES = kept.RESULTS / "low_precision_curves.jsonl"
COMPILED = kept.RESULTS / "low_precision_compiled.jsonl"
FIGURE = kept.RESULTS / "low_precision_curves.svg"
SEEDS = (0, 1, 2)

#: Mode -> the words of a run that say it.
MODES: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "int8 products": {"precision": "int8"},
    "fp8 products": {"precision": "fp8"},
    "bfloat16 moments": {"precision": "bfloat16", "moments": "bfloat16"},
    "int8 moments": {"precision": "bfloat16", "moments": "int8"},
    "bfloat16 parameters": {"precision": "bfloat16", "parameters": "bfloat16"},
    # Theirs are bfloat16 too, and added up by chance.
    "bfloat16 gradients": {
        "precision": "bfloat16",
        "parameters": "bfloat16",
        "accumulate": 8,
    },
}


def trained(mode: str, seed: int) -> lab.RunConfig:
    """A small run of a mode."""
    words = {"batch": 8, "length": 64, "steps": 120, "learning_rate": 3e-3}
    return lab.configure(
        "llama",
        "toy",
        "data=1",
        "cpu:1",
        data="reference",
        evaluate_batches=16,
        layers=2,
        seed=seed,
        **words,
        **MODES[mode],
    )


def compiled(target: str, layout: str, batch: int, **words: Any) -> lab.RunConfig:
    """A true-size step."""
    return lab.configure(
        "llama", "8b", layout, target, batch=batch, length=4096, remat="full", **words
    )


#: What is compared -> its configs, each under its mode; the first is the baseline.
POINTS: dict[str, dict[str, lab.RunConfig]] = {
    f"Llama 8B, {target}, 8k tokens a chip": {
        mode: compiled(target, "fsdp=64", 128, precision=precision)
        for mode, precision in (("bfloat16", "bfloat16"), (f"{name} products", name))
    }
    for target, name in (
        ("h100:8x8", "fp8"),
        ("tpu-v5p:4x4x4", "int8"),
        ("tpu-v6e:8x8", "int8"),
    )
} | {
    "Llama 8B, tpu-v6e:2x4, 4k tokens a chip": {
        "float32 moments": compiled("tpu-v6e:2x4", "fsdp=8", 8),
        "int8 moments": compiled("tpu-v6e:2x4", "fsdp=8", 8, moments="int8"),
        "moments on the host": compiled("tpu-v6e:2x4", "fsdp=8+offload_optimizer", 8),
        "bfloat16 parameters": compiled(
            "tpu-v6e:2x4", "fsdp=8", 8, parameters="bfloat16"
        ),
    }
}
TRAINED = [trained(mode, seed) for mode in MODES for seed in SEEDS]
CONFIGS = [*TRAINED, *(each for point in POINTS.values() for each in point.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", action="store_true", help="what is not there")
    parser.add_argument("--compile", action="store_true", help="what is not there")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.train:
        train()
    found = {"curves": curves(), "compiled": points(given.compile)}
    if given.train:
        draw(FIGURE)
    print(json.dumps(found, indent=1) if given.json else text(found))


def train() -> None:
    """Runs what has no record yet, one seed of every mode after the other."""
    import jax

    # A step is the same program whatever its seed.
    jax.config.update("jax_compilation_cache_dir", str(kept.MODULES.parent / "xla"))
    known = by_asked()
    for seed in SEEDS:
        for mode in MODES:
            config = trained(mode, seed)
            if kept.key(config.to_json()) in known:
                continue
            found = lab.run(config)
            print(mode, seed, found.status, found.reason or "", flush=True)
            if found.status == "ok":
                record.append(CURVES, kept.learned(found))


def by_asked() -> dict[str, record.RunRecord]:
    """The records there are, by what was asked of them."""
    rows = record.read(CURVES) if CURVES.exists() else []
    return {kept.key(row.asked["config"]): row for row in rows}


def runs() -> dict[str, list[dict[str, Any]]]:
    """What was measured, by mode, one for every seed that has run."""
    known = by_asked()
    found: dict[str, list[dict[str, Any]]] = {}
    for mode in MODES:
        rows = [known.get(kept.key(trained(mode, seed).to_json())) for seed in SEEDS]
        found[mode] = [row.measured for row in rows if row and row.measured]
    return found


def curves() -> list[dict[str, Any]]:
    """Held-out bits per byte of every mode, and its distance from float32, by seed."""
    measured = runs()
    base = [row["held_out"]["final"] for row in measured["float32"]]
    rows = []
    for mode, each in measured.items():
        bits = [row["held_out"]["final"] for row in each]
        if len(bits) < 2 or len(bits) != len(base):
            continue
        apart = [own - other for own, other in zip(bits, base, strict=True)]
        rows.append(
            {
                "mode": mode,
                "seeds": len(bits),
                "bits_per_byte": statistics.mean(bits),
                "spread": statistics.stdev(bits),
                "from_float32": statistics.mean(apart),
                "from_float32_spread": statistics.stdev(apart),
            }
        )
    return rows


def points(compiles: bool = False) -> list[dict[str, Any]]:
    """Time and bytes of every compiled point, beside its baseline."""
    configs = [config for point in POINTS.values() for config in point.values()]
    found = kept.records(configs, COMPILED, compiles)
    rows = []
    for name, point in POINTS.items():
        columns = {
            mode: found[config.id].compiled or {}
            for mode, config in point.items()
            if config.id in found
        }
        first = columns.get(next(iter(point)), {})
        for mode, column in columns.items():
            seconds, base = column.get("step_seconds"), first.get("step_seconds")
            rows.append(
                {
                    "point": name,
                    "mode": mode,
                    "step_seconds": seconds,
                    "faster": base / seconds if base and seconds else None,
                    "peak_bytes": column.get("peak_bytes"),
                    "fits": column.get("fits"),
                }
            )
    return rows


def text(found: dict[str, Any]) -> str:
    """Both tables to read."""
    lines = [f"{'mode':22} {'bits per byte':>16} {'from float32':>18}"]
    for row in found["curves"]:
        lines.append(
            f"{row['mode']:22} {row['bits_per_byte']:8.4f} ± {row['spread']:.4f} "
            f"{row['from_float32']:+9.4f} ± {row['from_float32_spread']:.4f}"
        )
    name = ""
    for row in found["compiled"]:
        if row["point"] != name:
            name = row["point"]
            lines += ["", name]
        seconds, faster = row["step_seconds"], row["faster"]
        time = "" if seconds is None else f"{seconds:.3f} s"
        ratio = "" if faster is None else f"{faster:.2f}x"
        lines.append(f"  {row['mode']:22} {time:>9} {ratio:>6} {_giga(row)}")
    return "\n".join(lines)


def _giga(row: dict[str, Any]) -> str:
    size, fits = row["peak_bytes"], row["fits"]
    if size is None:
        return ""
    return f"{size / 1e9:6.2f} GB" + ("" if fits else ", does not fit")


def draw(path: Path) -> None:
    """Training loss of every mode, the mean over seeds, smoothed over ten steps."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    for mode, rows in runs().items():
        if not rows:
            continue
        mean = np.mean([row["loss"]["values"] for row in rows], 0)
        smooth = np.convolve(mean, np.ones(10) / 10, "valid")
        axes.plot(np.arange(len(smooth)) + 10, smooth, label=mode, linewidth=1)
    axes.set_xlabel("steps")
    axes.set_ylabel("training loss, nats a token")
    axes.legend(fontsize=7)
    figure.savefig(path)


if __name__ == "__main__":
    main()
