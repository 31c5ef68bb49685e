"""Does attention cost as much as its mask sees?

Run:     python -m experiments.sparse_attention [--length 4096] [--repeats 3] [--json]
Takes:   about four minutes of two CPU cores.
Expect:  forward and backward passes together take a share of the full mask's processor
         time in the same run that falls with the share of pairs that the mask sees
         (`Mask.density`): 0.12 to 0.15 above it for causal masks, chunks and windows,
         0.12 to 0.25 for scattered small blocks, 0.08 to 0.33 for blocks that queries
         choose, summaries and choice included. The forward pass alone is up to 0.5
         above it: what a block costs beside its products weighs more there.

The kernel is `parallel.chunked`, which runs everywhere and skips a block of pairs that
all are hidden; chosen blocks are gathered by `parallel.chosen`. Masks take turns, and
what is counted is the processor's time on all cores, so that neighbours on a busy
machine do not count.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

import scaling_lab as lab
from scaling_lab.parallel import attention, choice, chosen, chunked, masks

RESULTS = Path(__file__).parent / "results" / "sparse_attention"
CONFIGS = [lab.configure("llama", "33m", "data=1", "cpu:1", batch=1, length=2048)]
#: Tokens of a block of the map, and of one that is chosen.
SIZE = 128
Attend = Callable[..., Any]


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


def choosing(block: int, top: int) -> Attend:
    """Summaries of blocks, the choice of some, and attention to both."""

    def attend(q: Any, k: Any, v: Any, mask: masks.Mask) -> Any:
        summaries, (key, value) = choice.summaries(mask, block), _means(block, k, v)
        firsts, _ = choice.firsts(q, mask, block)
        mask = choice.choose(firsts, key, summaries, (top, 1), mask)
        return attention.dense(q, key, value, summaries) + chosen.attend(q, k, v, mask)

    return attend


def _means(block: int, *arrays: Any) -> Any:
    return (reduce(a, "b (s i) k h -> b s k h", "mean", i=block) for a in arrays)


def chosen_density(length: int, block: int, top: int) -> float:
    """Pairs of queries with chosen keys and with summaries, of all pairs."""
    rows = np.arange(length // block)
    others = np.minimum(rows, top + 1).sum() * block**2
    own = len(rows) * block * (block + 1) / 2
    summaries = ((np.arange(length) + 1) // block).sum()
    return float(others + own + summaries) / length**2


def answer(length: int, repeats: int) -> dict[str, Any]:
    """Density and processor time of every mask, both as shares of the full mask's."""
    model = CONFIGS[0].model
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (model.N, model.K, model.K, model.N)
    q, k, v, d = (
        jax.random.normal(key, (1, length, count, model.H))
        for key, count in zip(keys, heads, strict=True)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def forward(attend: Attend, mask: masks.Mask) -> Any:
        return attend(q, k, v, mask)

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend: Attend, mask: masks.Mask) -> Any:
        out, back = jax.vjp(lambda *arrays: attend(*arrays, mask), q, k, v)
        return out, back(d)

    found = masks_of(length)
    asked = {name: (chunked.attend, mask) for name, mask in found.items()}
    densities = {name: mask.density() for name, mask in found.items()}
    for top in (14, 6, 2):
        name = f"chosen, {top} blocks of {SIZE}, own and last"
        asked[name] = (choosing(SIZE, top), found["causal"])
        densities[name] = chosen_density(length, SIZE, top)
    spent: dict[tuple[str, Any], list[float]] = {}
    for repeat in range(repeats + 1):  # the first compiles
        for name, call in asked.items():
            for passes in (forward, both):
                start = time.process_time()
                jax.block_until_ready(passes(*call))
                if repeat:
                    seconds = time.process_time() - start
                    spent.setdefault((name, passes), []).append(seconds)
    middle = {key: statistics.median(each) for key, each in spent.items()}
    rows = [
        {
            "mask": name,
            "density": densities[name],
            "forward": middle[name, forward] / middle["full", forward],
            "time": middle[name, both] / middle["full", both],
            "processor_seconds": middle[name, both],
        }
        for name in asked
    ]
    return {"length": length, "repeats": repeats, "rows": rows}


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = [
        f"{'mask':38} {'pairs seen':>10} {'forward':>8} {'and back':>8}   of the full "
        "mask's"
    ]
    for row in found["rows"]:
        shares = f"{row['density']:10.3f} {row['forward']:8.3f} {row['time']:8.3f}"
        lines.append(f"{row['mask']:38} {shares}")
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
    axes.set_ylabel("processor time, as a share of the full mask's")
    figure.savefig(path)


if __name__ == "__main__":
    main()
