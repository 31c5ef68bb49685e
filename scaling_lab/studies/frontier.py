"""Loss by compute, and the frontier that the runs' own scaling law gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from scaling_lab.record import RunRecord
from scaling_lab.studies.curves import points_of, thin
from scaling_lab.studies.plain import rows_of
from scaling_lab.studies.units import count

HELD_OUT, TRAINED = "bits per held-out byte", "nats per token of the last training step"
_CURVE_POINTS, _FRONTIER_POINTS = 60, 60
#: What runs must share for one law to describe them.
_SAME = ("data_digest", "tokenizer", "precision")


def loss_by_compute(
    frame: pd.DataFrame,
    runs: Sequence[RunRecord],
    point: Callable[[int], Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Every run's loss at its compute (6 N D, see `_params`), its curve, the frontier.

    Held-out loss if every run that has a loss has one, else that of the last training
    step. ``None`` where no two runs differ in compute: there is nothing to draw.

    Args:
      point: what a run's points carry besides numbers, by the run's place.
    """
    rows = rows_of(frame)
    trained = [place for place, row in enumerate(rows) if _compute(row) and row["loss"]]
    held_out = all(rows[place]["held_out_bits_per_byte"] for place in trained)
    name = "held_out_bits_per_byte" if held_out else "loss"
    points, curves = [], []
    for place in trained:
        row = rows[place]
        each = {**point(place), "x": _compute(row), "y": float(row[name])}
        each |= {"params": count(_params(row)), "tokens": count(_tokens(row))}
        points.append(each)
        curves += [] if held_out else _curve(row, runs[place], each)
    if len({each["x"] for each in points}) < 2:
        return None
    found = _frontier([rows[place] for place in trained], name)
    loss = HELD_OUT if held_out else TRAINED
    return {"loss": loss, "points": points, "curves": curves, **found}


def _compute(row: Mapping[str, Any]) -> float | None:
    """6 N D of a run in FLOPs."""
    tokens, params = _tokens(row), _params(row)
    return 6 * params * tokens if tokens and params else None


def _params(row: Mapping[str, Any]) -> float:
    """Parameters that a token is multiplied with; all, where no more was recorded.

    Of a model with experts those are the chosen ones, of any model the head and not the
    embedding.
    """
    return float(row["params_without_embedding"] or row["params"] or 0)


def _tokens(row: Mapping[str, Any]) -> float:
    return float((row["steps"] or 0) * (row["tokens_per_step"] or 0))


def _curve(
    row: Mapping[str, Any], run: RunRecord, end: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A run's loss on the way to its end, thinned."""
    told = thin(points_of(run, "measured.loss", "values"))
    stride = 1 + len(told) // _CURVE_POINTS
    told = told[::stride]
    share = end["x"] / row["steps"]
    return [
        {"run": end["run"], "hue": end["hue"], "x": step * share, "y": value}
        for step, value in told
        if step > 0
    ]


def _frontier(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The fitted frontier as points, its optima, and what it is in words."""
    kinds = Counter(tuple(row[each] for each in _SAME) for row in rows)
    same, most = kinds.most_common(1)[0]
    chosen = [row for row in rows if tuple(row[each] for each in _SAME) == same]
    table = pd.DataFrame(
        {
            "params": [_params(row) for row in chosen],
            "tokens": [_tokens(row) for row in chosen],
            "flops": [_compute(row) for row in chosen],
            "loss": [float(row[name]) for row in chosen],
        }
    )
    which = (
        f"{most} runs"
        if len(kinds) == 1
        else f"the {most} of {len(rows)} runs that share data, tokenizer and precision"
    )
    try:
        return _isoflop(table, which)
    except ImportError:
        return _nothing("scipy is not installed")
    except ValueError as first:
        try:
            return _parametric(table, which)
        except ValueError:
            return _nothing(str(first))


def _nothing(why: str) -> dict[str, Any]:
    return {"frontier": [], "optima": [], "words": f"No frontier is fitted: {why}."}


def _isoflop(table: pd.DataFrame, which: str) -> dict[str, Any]:
    from scaling_lab.studies.fitting import fit

    found = fit(table, law="isoflop", **_COLUMNS)
    inside = [each for each in found.optima if each.inside and each.loss]
    optima = [
        {"x": each.flops, "y": each.loss, "params": count(each.params)}
        for each in inside
    ]
    said = found.parameters
    lead = (
        "Rings: the lowest point of each budget's parabola; "
        f"N* grows as C^{said['a']:.2f}. "
    )
    if "frontier_E" not in said:
        words = (
            f"{lead}A frontier needs four budgets with an optimum inside; "
            f"{len(inside)} have one."
        )
        return {"frontier": [], "optima": optima, "words": words}
    floor, scale, power = (said[f"frontier_{name}"] for name in ("E", "k", "a"))
    line = [
        {"x": c, "y": floor + scale * c**-power}
        for c in _between([each.flops for each in inside])
    ]
    law = f"{floor:.3g} + {scale:.3g} C^-{power:.3g}"
    words = f"{lead}Line: {law}, fitted to them ({which})."
    return {"frontier": line, "optima": optima, "words": words}


def _parametric(table: pd.DataFrame, which: str) -> dict[str, Any]:
    from scaling_lab.studies.fitting import fit

    found = fit(table, law="chinchilla", **_COLUMNS)
    if found.path is None:
        raise ValueError("the law has no path")
    line = []
    for c in _between(table["flops"].tolist()):
        n, d = (
            found.path.n_scale * c**found.path.a,
            found.path.d_scale * c**found.path.b,
        )
        line.append({"x": c, "y": float(found.predict(n=n, d=d)[0])})
    words = (
        f"Line: the parametric law's loss where compute is best spent (N ∝ "
        f"C^{found.path.a:.2f}), fitted to {which}."
    )
    if found.warnings:
        words += f" It is doubtful: {found.warnings[0]}."
    return {"frontier": line, "optima": [], "words": words}


_COLUMNS = {
    "n_column": "params",
    "d_column": "tokens",
    "c_column": "flops",
    "loss_column": "loss",
    "bootstrap": 0,
}


def _between(flops: Sequence[float]) -> list[float]:
    low, high = math.log(min(flops)), math.log(max(flops))
    steps = _FRONTIER_POINTS - 1
    return [math.exp(low + (high - low) * step / steps) for step in range(steps + 1)]
