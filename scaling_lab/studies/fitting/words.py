"""A fit as plain data and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.law import ROLES

if TYPE_CHECKING:
    from scaling_lab.studies.fitting.result import Curve, Fit, Optimum


def as_json(fit: Fit) -> dict[str, Any]:
    """Plain data; numbers that are not finite become None."""
    a, b = _exponents(fit)
    curve = fit.curve
    found = {
        "law": fit.law,
        "formula": laws.law(fit.law).formula,
        "parameters": fit.parameters,
        "intervals": fit.ranges(),
        "interval": fit.interval,
        "a": a,
        "b": b,
        "a_ci": fit.exponent("a"),
        "b_ci": fit.exponent("b"),
        "optima": [_optimum(each) for each in fit.optima],
        "convention": fit.points.convention,
        "n_points": len(fit.points),
        "objective": fit.objective,
        "objective_mean": fit.objective / len(fit.points),
        "minimised": _minimised(fit),
        "bootstrap": {
            "kind": fit.options.resample,
            "asked": fit.options.bootstrap,
            "seed": fit.options.seed,
        },
        "drop_highest": fit.options.drop_highest,
        "where": list(fit.options.where),
        "ranges": ranges_of(fit),
        "held_out": vars(fit.held_out) if fit.held_out else None,
        "notes": list(fit.points.notes),
        "warnings": fit.warnings,
        "draws": fit.draws(),
    }
    if curve is not None:
        found |= _of_curve(curve)
    return _plain(found)


def _of_curve(curve: Curve) -> dict[str, Any]:
    return {
        "loss": curve.objective.kind,
        "huber": curve.objective.delta if curve.objective.kind == "huber" else None,
        "fixed": dict(curve.fixed),
        "condition": curve.condition,
        "flat_directions": [
            {"error": d.error, "moves": dict(d.moves), "words": d.words}
            for d in curve.flat
        ],
        "profiles": {
            name: {
                "values": each.values.tolist(),
                "objective": each.objective.tolist(),
                "low": each.low,
                "high": each.high,
            }
            for name, each in curve.profiles.items()
        },
        "leverage": [vars(each) for each in curve.moved],
        "starts": {"made": curve.starts[1], "agreeing": curve.starts[0]},
        "published": dict(curve.references),
    }


def _optimum(each: Optimum) -> dict[str, Any]:
    return {
        "flops": each.flops,
        "params": each.params,
        "tokens": each.tokens,
        "loss": each.loss,
        "points": each.points or None,
        "inside": each.inside,
    }


def _exponents(fit: Fit) -> tuple[float | None, float | None]:
    return (fit.path.a, fit.path.b) if fit.path else (None, None)


def _minimised(fit: Fit) -> str:
    return fit.curve.objective.words if fit.curve else fit.words


def ranges_of(fit: Fit) -> dict[str, tuple[float, float]]:
    """Least and most of every column of the points."""
    columns = {**fit.points.columns, "y": fit.points.y}
    return {
        role: (float(values.min()), float(values.max()))
        for role, values in columns.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def as_text(fit: Fit) -> str:
    """The fit for people: what was read, what is doubtful, then the numbers."""
    law = laws.law(fit.law)
    blocks = [
        [f"{fit.law}: {law.title}", f"  {law.formula}"],
        _read(fit),
        [f"note: {each}" for each in fit.points.notes],
        [f"warning: {each}" for each in fit.warnings],
        _least(fit),
        _values(fit),
        _path(fit),
        _best(fit),
        _firm(fit),
        _published(fit),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _read(fit: Fit) -> list[str]:
    law = laws.law(fit.law)
    lines = [f"{len(fit.points)} points"]
    for role, (low, high) in ranges_of(fit).items():
        what = ROLES[law.response if role == "y" else role]
        said = fit.points.convention.get(role, "")
        lines.append(f"  {what:20} {number(low):>9} to {number(high):<9} {said}")
    if "weight" in fit.points.convention:
        lines.append(f"  weights: {fit.points.convention['weight']}")
    return lines


def _least(fit: Fit) -> list[str]:
    lines = [
        f"minimised: {_minimised(fit)}",
        f"  at the minimum {fit.objective:.8g}, "
        f"{fit.objective / len(fit.points):.4g} a point",
    ]
    if fit.curve is not None:
        agreeing, made = fit.curve.starts
        how = "variable projection" if fit.options.solver == "projection" else "descent"
        lines.append(
            f"  {how}; {agreeing} of {made} starts ended here; condition number "
            f"{fit.curve.condition:.2g}"
        )
    if fit.options.drop_highest:
        lines.append(f"  without the {fit.options.drop_highest} rows of highest loss")
    return lines


def _values(fit: Fit) -> list[str]:
    """One line a parameter: value, bootstrap, profile."""
    ranges = fit.ranges()
    share = f"{100 * fit.interval:g}%"
    rows = [["", "value", f"{share} by bootstrap", f"{share} by profile", ""]]
    meaning = {each.name: each.meaning for each in laws.law(fit.law).parameters}
    for name, value in fit.parameters.items():
        profile = fit.curve.profiles.get(name) if fit.curve else None
        held = " (held)" if fit.curve and name in fit.curve.fixed else ""
        rows.append(
            [
                name,
                f"{value:.6g}{held}",
                _pair(ranges.get(name)),
                _pair((profile.low, profile.high)) if profile else "",
                meaning.get(name, ""),
            ]
        )
    return columns_of(rows)


def _pair(pair: Sequence[float | None] | None) -> str:
    if pair is None:
        return "–"
    low, high = ("?" if each is None else _end(each) for each in pair)
    return f"{low} to {high}"


def _end(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "∞"


def _path(fit: Fit) -> list[str]:
    if fit.path is None:
        return []
    lines = []
    for what, name, at, scale in (
        ("parameters", "a", fit.path.a, fit.path.n_scale),
        ("tokens", "b", fit.path.b, fit.path.d_scale),
    ):
        pair = fit.exponent(name)
        between = f" ({_pair(pair)})" if pair else ""
        lines.append(
            f"compute-optimal {what:10} = {scale:.4g} C^{name}, "
            f"{name} = {at:.4f}{between}"
        )
    return lines


def _best(fit: Fit) -> list[str]:
    if not fit.optima:
        return []
    rows = [["FLOPs", "parameters", "tokens", "tokens/parameter", "loss", "points"]]
    for each in fit.optima:
        rows.append(
            [
                f"{each.flops:.3g}",
                number(each.params),
                number(each.tokens),
                f"{each.tokens / each.params:.3g}",
                f"{each.loss:.4f}" if each.loss and each.inside else "–",
                (str(each.points) if each.points else "")
                + ("" if each.inside else " not inside: left out"),
            ]
        )
    return columns_of(rows)


def _firm(fit: Fit) -> list[str]:
    lines = []
    if fit.held_out is not None and fit.held_out.by == "budget":
        lines.append(
            f"the line of the other budgets is off by {fit.held_out.bias:+.1%} at the "
            f"largest ({fit.held_out.above:.3g} FLOPs), in optimal parameters"
        )
    elif fit.held_out is not None:
        out = fit.held_out
        lines.append(
            f"fitted without the {out.points} points of most {out.by} (from "
            f"{out.above:.3g}): off by {out.mean:.2%} there on the mean, "
            f"{out.worst:.2%} at most, bias {out.bias:+.2%}"
        )
    if fit.curve is not None and fit.curve.moved:
        lines.append("points that move the fit most (row; what it would be without it)")
        for each in fit.curve.moved[:3]:
            path = "" if each.path_a is None else f", a = {each.path_a:.4f}"
            lines.append(
                f"  row {each.row}: {each.parameter} = {each.value:.4g}, "
                f"{each.errors:+.2f} standard errors{path}"
            )
    return lines


def _published(fit: Fit) -> list[str]:
    if fit.curve is None or fit.curve.law.response == "y":
        return []
    if not fit.curve.references:
        return []
    lines = ["published constants on these points (objective; beside this fit's)"]
    for name, value in fit.curve.references.items():
        times = value / fit.objective if fit.objective > 0 else math.inf
        lines.append(f"  {name:24} {value:.6g}  × {times:.4g}")
    return lines


def columns_of(rows: list[list[str]]) -> list[str]:
    """Rows under one another; the first is a heading."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if place in (0, len(row) - 1) else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def number(value: float) -> str:
    """A large number in three digits and a letter, a small one in four."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= abs(value) < size * 1e3:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e15 else f"{value:.4g}"
