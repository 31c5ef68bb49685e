"""IsoFLOP fits: a parabola a budget, a line through their lowest points.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): loss against the
logarithm of parameters, and of tokens, by least squares. Where the grid is off-centre
or the law's two exponents differ, the line is biased (arXiv 2603.22339): the direct fit
of the same points is told beside it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.fitting import check
from scaling_lab.studies.fitting.groups import budgets, distinct
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.quadratic import (
    LEAST_BUDGETS,
    LEAST_POINTS,
    bent,
    refits,
    squares,
)
from scaling_lab.studies.fitting.result import Fit, Heldout, Optimum, Parabola
from scaling_lab.studies.fitting.solve import solve
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import Array, Law, Path

#: How far from the middle of its budget's sizes an optimum may lie unremarked.
OFF_CENTRE = 0.6
#: How far a + b may be from 1 unremarked.
OFF_ONE = 0.1


def isoflop(points: Points, options: Options) -> Fit:
    """Parabolas and their line.

    Raises:
      ValueError: units that cannot be, fewer than two budgets with an optimum inside.
    """
    law = laws.law("isoflop")
    warnings = check.refuse_units(points, law)
    groups, left = _groups(points, options)
    warnings += left
    found = [_parabola(points, group) for group in groups]
    inside = [each for each in found if each.inside]
    warnings += [f"budget {p.flops:.3g}: {p.why}; left out" for p in found if p.why]
    if len(inside) < LEAST_BUDGETS:
        raise ValueError(
            f"{len(inside)} of {len(found)} budgets have an optimum inside their sizes "
            f"({'; '.join(f'{p.flops:.3g}: {p.why}' for p in found if p.why)}); a line "
            "needs two: add sizes on both sides"
        )
    path, frontier = _line(inside), _frontier(inside)
    warnings += [*_off_centre(points, inside), *_odd_sum(path), *_exact(inside)]
    objective = sum(squares(points, each) for each in found)
    direct = _direct(points)
    if direct is not None:
        note = (
            f"the parametric law fitted to the same points has a = {direct.a:.4f}, b = "
            f"{direct.b:.4f}; parabolas are biased where grids are off-centre"
        )
        points = dataclasses.replace(points, notes=(*points.notes, note))
    return Fit(
        law="isoflop",
        parameters={
            "a": path.a,
            "b": path.b,
            "n_scale": path.n_scale,
            "d_scale": path.d_scale,
            **frontier,
        },
        path=path,
        interval=options.interval,
        optima=[
            Optimum(p.flops, p.n_best, p.d_best, p.low, len(p.places), p.inside)
            for p in found
        ],
        points=points,
        objective=float(objective),
        held_out=_top(inside),
        warnings=warnings,
        options=options,
        parabolas=tuple(found),
        path_refits=refits(points, inside, options) if options.bootstrap else None,
        words="squared residuals of the loss about each budget's parabola in log N; "
        "then of the line through log N* (and log D*) by log C",
    )


def _near(points: Points, group: Array, options: Options) -> Array:
    """A budget's points, those of far sizes left out if that was asked."""
    if options.window is None:
        return group
    log_n = np.log(points.columns["n"][group])
    best = log_n[np.argmin(points.y[group])]
    return group[np.abs(log_n - best) <= np.log(options.window) * (1 + 1e-9)]


def _groups(points: Points, options: Options) -> tuple[list[Array], list[str]]:
    """The budgets that parabolas go through, and what is none, in words.

    Raises:
      ValueError: there are no two, or most points belong to none.
    """
    every = budgets(points.columns["c"])
    clear = distinct(points.columns["c"], every)
    whole = [g for g, ok in zip(every, clear, strict=True) if ok and _sizes(points, g)]
    none = [g for g, ok in zip(every, clear, strict=True) if not ok and len(g) > 1]
    inside, told = sum(map(len, whole)), _scattered(points, none)
    if len(whole) < LEAST_BUDGETS or inside < len(points) / 2:
        raise ValueError(
            f"{_too_few(points, every)}; {inside} of {len(points)} points belong to "
            f"budgets of that kind{told and f', and {told}'}. Train sizes at the same "
            "FLOPs, or fit --law chinchilla, which takes any points"
        )
    near = [_near(points, group, options) for group in whole]
    near = [group for group in near if _sizes(points, group)]
    if len(near) < LEAST_BUDGETS:
        raise ValueError(
            f"{_too_few(points, near)} within the window of {options.window:g}"
        )
    return near, [f"{told}; left out"] if told else []


def _sizes(points: Points, group: Array) -> bool:
    return len(np.unique(points.columns["n"][group])) >= LEAST_POINTS


def _scattered(points: Points, none: list[Array]) -> str:
    """What groups are no budgets, in words; nothing where there are none."""
    if not none:
        return ""
    c = points.columns["c"]
    widest = max(none, key=lambda group: c[group].max() / c[group].min())
    return (
        f"{sum(map(len, none))} points follow each other too closely by FLOPs to be "
        f"of distinct budgets (from {c[widest].min():.3g} to {c[widest].max():.3g} "
        "without a gap, for example)"
    )


def _too_few(points: Points, groups: list[Array]) -> str:
    told = ", ".join(
        f"{np.median(points.columns['c'][g]):.3g} ({len(g)})" for g in groups[:8]
    )
    return (
        f"isoflop needs {LEAST_BUDGETS} budgets of {LEAST_POINTS} sizes each; by FLOPs "
        f"(points) there are {told or 'none'}{' …' if len(groups) > 8 else ''}"
    )


def _parabola(points: Points, group: Array) -> Parabola:
    n, d = points.columns["n"][group], points.columns["d"][group]
    y, one = points.y[group], points.weight[group][None]
    (log_n,), (low,), (bend,) = bent(np.log(n), y, one)
    (log_d,), _, _ = bent(np.log(d), y, one)
    why, reach = "", np.ptp(np.log(n))
    middle = (np.log(n.max()) + np.log(n.min())) / 2
    if not abs(log_n - middle) < 2 * reach or not np.isfinite(log_d):
        why = "its losses are no valley"
        log_n, log_d, low = np.log(n[np.argmin(y)]), np.log(d[np.argmin(y)]), y.min()
    elif not n.min() <= np.exp(log_n) <= n.max():
        side = "below" if np.exp(log_n) < n.min() else "above"
        why = f"its optimum ({np.exp(log_n):.3g}) lies {side} its sizes"
    flops = float(np.median(points.columns["c"][group]))
    n_best, d_best = float(np.exp(log_n)), float(np.exp(log_d))
    return Parabola(flops, group, n_best, d_best, float(low), float(bend), not why, why)


def _line(found: list[Parabola]) -> Path:
    c = np.log([each.flops for each in found])
    a, n_at = np.polyfit(c, np.log([each.n_best for each in found]), 1)
    b, d_at = np.polyfit(c, np.log([each.d_best for each in found]), 1)
    return Path(float(a), float(b), float(np.exp(n_at)), float(np.exp(d_at)))


def _frontier(found: list[Parabola]) -> dict[str, float]:
    """The lowest losses as a power of compute with a floor, from four budgets on."""
    if len(found) < 4:
        return {}
    return {f"frontier_{k}": v for k, v in frontier_of(found)[1].items()}


def frontier_of(found: list[Parabola]) -> tuple[Law, dict[str, float]]:
    """The law of the lowest losses by compute, and its constants."""
    law = laws.law("power_offset")
    c = np.array([each.flops for each in found])
    low = np.array([each.low for each in found])
    table = Points({"x": c}, low, np.ones(len(c)), np.arange(len(c)), {})
    return law, law.values(solve(law, table, Options(loss="log_mse")).at)


def _off_centre(points: Points, found: list[Parabola]) -> list[str]:
    told = []
    for each in found:
        x = np.log(points.columns["n"][each.places])
        off = (np.log(each.n_best) - (x.max() + x.min()) / 2) / (np.ptp(x) / 2)
        if abs(off) > OFF_CENTRE:
            told.append(f"{each.flops:.3g} ({off:+.1f})")
    if not told:
        return []
    return [f"optima near the edge of their sizes (1 is the edge): {', '.join(told)}"]


def _odd_sum(path: Path) -> list[str]:
    off = path.a + path.b - 1
    if abs(off) <= OFF_ONE:
        return []
    return [
        f"a + b = {path.a + path.b:.3f}, and C = 6 N D makes it 1: FLOPs are counted "
        "another way at some sizes, or optima are not where these parabolas have them"
    ]


def _exact(found: list[Parabola]) -> list[str]:
    """Budgets whose parabola goes through its points: nothing tells their noise."""
    bare = [each for each in found if len(each.places) <= LEAST_POINTS]
    if not bare:
        return []
    which, what = f"{len(bare)} budgets have", "their noise is taken from the others"
    if len(bare) == len(found):
        which, what = "every budget has", "there is no interval"
    return [
        f"{which} {LEAST_POINTS} points: a parabola goes through them whatever their "
        f"noise, and {what}; four sizes or more a budget, or repeated seeds, would "
        "tell it"
    ]


def _direct(points: Points) -> Path | None:
    """The parametric law's path on the same points."""
    law = laws.law("chinchilla")
    try:
        check.refuse(points, law, law.names)
        return law.best_path(law.values(solve(law, points, Options()).at))
    except ValueError:
        return None


def _top(found: list[Parabola]) -> Heldout | None:
    """How far off the others' line is at the largest budget, in parameters."""
    if len(found) < LEAST_BUDGETS + 1:
        return None
    *rest, top = found
    path = _line(rest)
    error = path.n_scale * top.flops**path.a / top.n_best - 1
    return Heldout(1, "budget", top.flops, abs(error), abs(error), error)
