"""Does attention cost as much as its mask sees?

Run:     python -m experiments.sparse_attention [--length 4096] [--repeats 3] [--json]
Takes:   about two minutes of two CPU cores.
Expect:  time of forward and backward passes, as a share of the full mask's in the same
         run, follows the share of pairs that the mask sees (`Mask.density`): within 0.1
         of it for causal masks and windows, 0.15 above it for scattered small blocks.

The kernel is `parallel.chunked`, which runs everywhere and skips a block of pairs that
all are hidden. Masks take turns, so that a noisy machine slows all alike.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scaling_lab as lab
from scaling_lab.parallel import chunked, masks

RESULTS = Path(__file__).parent / "results" / "sparse_attention"
CONFIGS = [lab.configure("llama", "33m", "data=1", "cpu:1", batch=1, length=2048)]
#: Tokens of a block of the map.
SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    given = parser.parse_args()
    found = answer(given.length, given.repeats)
    if given.keep:
        RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, RESULTS.with_suffix(".svg"))
    print(json.dumps(found, indent=1) if given.json else text(found))


def masks_of(length: int) -> dict[str, masks.Mask]:
    """Masks by what people call them, the densest first."""
    at_BT = jnp.arange(length)[None]
    batch = {"positions_BT": at_BT, "segments_BT": jnp.zeros_like(at_BT)}
    causal = masks.causal_mask(batch)
    found = {
        "full": masks.Mask(at_BT, at_BT, causal=False, ordered=True),
        "causal": causal,
        "chunks of T/4": masks.chunked(causal, length // 4),
    }
    for part in (2, 4, 8):
        name = f"window of T/{part}"
        found[name] = masks.causal_mask(batch, window=length // part)
    for kept in (0.5, 0.2, 0.05):
        blocks = some_blocks(length // SIZE, kept)
        name = f"blocks, {kept:.0%} and their own"
        found[name] = masks.causal_mask(batch, blocks=blocks)
    return found


def some_blocks(count: int, kept: float) -> masks.Blocks:
    """A map that keeps a share of all blocks, drawn once and for all, and its own."""
    seen_QS = np.random.default_rng(0).random((count, count)) < kept
    return masks.Blocks.of(SIZE, seen_QS | np.eye(count, dtype=bool))


def answer(length: int, repeats: int) -> dict[str, Any]:
    """Density and time of every mask, both as shares of the full mask's."""
    model = CONFIGS[0].model
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (model.N, model.K, model.K, model.N)
    q, k, v, d = (
        jax.random.normal(key, (1, length, count, model.H))
        for key, count in zip(keys, heads, strict=True)
    )

    @jax.jit
    def both(mask: masks.Mask) -> Any:
        out, back = jax.vjp(lambda *arrays: chunked.attend(*arrays, mask), q, k, v)
        return out, back(d)

    found = masks_of(length)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(repeats + 1):  # the first compiles
        for name, mask in found.items():
            start = time.perf_counter()
            jax.block_until_ready(both(mask))
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [
        {
            "mask": name,
            "density": mask.density(),
            "time": middle[name] / middle["full"],
            "seconds": middle[name],
        }
        for name, mask in found.items()
    ]
    return {"length": length, "repeats": repeats, "rows": rows}


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = [f"{'mask':28} {'pairs seen':>10} {'time':>8}   of the full mask's"]
    for row in found["rows"]:
        lines.append(f"{row['mask']:28} {row['density']:10.3f} {row['time']:8.3f}")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Time against density."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.8", zorder=0)
    for row in found["rows"]:
        axes.plot(row["density"], row["time"], "o", color="tab:blue")
        axes.annotate(
            row["mask"],
            (row["density"], row["time"]),
            xytext=(4, -8),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlim(-0.02, 1.1)
    axes.set_xlabel("share of pairs seen")
    axes.set_ylabel("time, as a share of the full mask's")
    figure.savefig(path)


if __name__ == "__main__":
    main()
