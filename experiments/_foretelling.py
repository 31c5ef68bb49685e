"""What the runs of some budgets foretell of a higher one, and what came."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scaling_lab as lab
from experiments._isoflop import Point, points_of, spreads
from scaling_lab import record
from scaling_lab.data import store
from scaling_lab.studies.fitting.parabolas import bent

#: Runs that a law of five constants is fitted to, at least.
FEWEST = 8


def foretell(rows: Sequence[record.RunRecord], flops: float) -> dict[str, Any]:
    """The optimum of a budget, from the runs of lower ones alone.

    The loss is the lowest of the parametric law (approach 3) fitted to the lower runs.
    Beside it stands the power law with a floor through the parabolas' lowest losses,
    three constants of three numbers, which has all their noise.
    """
    points = points_of(rows)
    table = pd.DataFrame(points)
    isoflop = lab.fit(table.drop(columns="budget"), law="isoflop", bootstrap=200)
    path = isoflop.path
    assert path is not None
    n_best = path.n_scale * flops**path.a
    optima = [each for each in isoflop.optima if each.inside]
    return {
        "budget": flops,
        "loss": _lowest(_parametric(table), flops),
        "loss_frontier": _floored(optima, flops),
        "params": n_best,
        "tokens": flops / (6 * n_best),
        "from_budgets": [each.flops for each in optima],
        "from_losses": [each.loss for each in optima],
        "a": path.a,
        "a_ci": isoflop.exponent("a"),
        "seed_spread": max(spreads(points).values(), default=None),
        "runs": len(points),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _parametric(table: pd.DataFrame) -> Any:
    """The parametric law of some runs."""
    return lab.fit(table.drop(columns="budget"), law="chinchilla", bootstrap=0)


def _lowest(fitted: Any, flops: float) -> float:
    n = np.geomspace(1e4, 1e8, 2000)
    return float(fitted.predict(n=n, d=flops / (6 * n)).min())


def _floored(optima: Sequence[Any], flops: float) -> float | None:
    """The lowest losses as a power of compute with a floor; three points give three.

    ``None`` where they do not bend as such a power does.
    """
    if len(optima) < 3:
        return None
    c = np.log([each.flops for each in optima[-3:]])
    low = np.array([each.loss for each in optima[-3:]])
    ratio = (low[0] - low[1]) / (low[1] - low[2])

    def bend(k: float) -> float:
        p = np.exp(-k * (c - c[0]))
        return (p[0] - p[1]) / (p[1] - p[2])

    grid = np.linspace(1e-3, 2.0, 4000)
    values = np.array([bend(k) for k in grid])
    place = int(np.argmin(np.abs(values - ratio)))
    if place in (0, len(grid) - 1):
        return None
    k = grid[place]
    p = np.exp(-k * (c - c[0]))
    scale = (low[0] - low[2]) / (p[0] - p[2])
    return float(low[0] + scale * (np.exp(-k * (np.log(flops) - c[0])) - p[0]))


def foretold_of(path: Path, points: Sequence[Point]) -> list[str]:
    """What was foretold beside what came, in words; nothing where nothing was."""
    if not path.exists():
        return []
    told = json.loads(path.read_text("utf-8"))
    said = f"foretold of {told['budget']:.0e} FLOP: {told['loss']:.4f} bits a byte"
    points = [each for each in points if each["budget"] == told["budget"]]
    if len({each["params"] for each in points}) < 3:
        return [f"{said}, at {told['params']:.3g} parameters"]
    low = lowest(points)
    spread = max(spreads(points).values(), default=told.get("seed_spread") or np.nan)
    return [
        f"{said}; came: {low:.4f}, off by {low - told['loss']:+.4f}; twice the seeds' "
        f"spread is {2 * spread:.4f}"
    ]


def of_longer_runs(
    points: Sequence[Point], flops: float, step: int, least: Sequence[int]
) -> list[str]:
    """After the fact: what the lower budgets' runs foretell without the short ones.

    Args:
      step: tokens of a step. least: steps of the shortest run that is kept.
    """
    table = pd.DataFrame(points)
    if table.query("budget == @flops").empty:
        return []
    lines, lower = [], table.query("budget < @flops")
    for steps in least:
        kept = lower.query("tokens >= @steps * @step")
        if len(kept) < FEWEST:
            continue
        found = _lowest(_parametric(kept), flops)
        lines.append(
            f"after the fact, from the {len(kept)} runs of at least {steps} steps: "
            f"{found:.4f}"
        )
    return lines


def lowest(points: Sequence[Point]) -> float:
    """The lowest loss of a budget's parabola, as `fit` draws it."""
    x = np.log([each["params"] for each in points])
    y = np.array([each["loss"] for each in points])
    return float(bent(x, y, np.ones((1, len(x))))[1][0])


def write_once(path: Path, found: dict[str, Any]) -> bool:
    """Writes a prediction; an older one stays as it is."""
    if path.exists():
        return False
    store.write(path, json.dumps(found, indent=1) + "\n")
    return True
