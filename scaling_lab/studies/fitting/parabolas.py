"""IsoFLOP fits: a parabola a budget, a line through their lowest points.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): loss against the
logarithm of parameters, and of tokens, by least squares. Where the grid is off-centre
or the law's two exponents differ, the line is biased (arXiv 2603.22339): the direct fit
of the same points is told beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.fitting import check
from scaling_lab.studies.fitting.fit import budgets
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.result import Fit, Heldout, Optimum, Parabola
from scaling_lab.studies.fitting.solve import solve
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import Array, Law, Path

#: Points a parabola needs, and budgets a line needs.
LEAST_POINTS, LEAST_BUDGETS = 3, 2
#: How far from the middle of its budget's sizes an optimum may lie unremarked.
OFF_CENTRE = 0.6


def isoflop(points: Points, options: Options) -> Fit:
    """Parabolas and their line.

    Raises:
      ValueError: units that cannot be, fewer than two budgets with an optimum inside.
    """
    law = laws.law("isoflop")
    warnings = check.refuse_units(points, law)
    groups = [_near(points, g, options) for g in budgets(points.columns["c"])]
    groups = [group for group in groups if _sizes(points, group)]
    if len(groups) < LEAST_BUDGETS:
        raise ValueError(_too_few(points))
    found = [_parabola(points, group) for group in groups]
    inside = [each for each in found if each.inside]
    warnings += [f"budget {p.flops:.3g}: {p.why}; left out" for p in found if p.why]
    if len(inside) < LEAST_BUDGETS:
        raise ValueError(
            f"{len(inside)} of {len(found)} budgets have an optimum inside their sizes "
            f"({'; '.join(f'{p.flops:.3g}: {p.why}' for p in found if p.why)}); a line "
            "needs two: add sizes on both sides"
        )
    warnings += _off_centre(points, inside)
    path, frontier = _line(inside), _frontier(inside)
    objective = sum(_squares(points, each) for each in found)
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
        path_refits=_refits(points, inside, options) if options.bootstrap else None,
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


def _sizes(points: Points, group: Array) -> bool:
    return len(np.unique(points.columns["n"][group])) >= LEAST_POINTS


def _too_few(points: Points) -> str:
    groups = budgets(points.columns["c"])
    told = ", ".join(
        f"{np.median(points.columns['c'][g]):.3g} ({len(g)})" for g in groups[:8]
    )
    return (
        f"isoflop needs {LEAST_BUDGETS} budgets of {LEAST_POINTS} sizes each; by FLOPs "
        f"(points) there are {told}{' …' if len(groups) > 8 else ''}"
    )


def bent(x: Array, y: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Weighted parabolas: (where lowest, how low, bend), one a row of the weights."""
    middle = x.mean()
    z = x - middle
    powers = np.stack([z**0, z, z**2])
    left = np.einsum("bn,in,jn->bij", weight, powers, powers, optimize=True)
    right = np.einsum("in,bn->bi", powers, weight * y, optimize=True)
    good = np.linalg.cond(left) < 1e12
    left[~good] = np.eye(3)
    c0, c1, c2 = np.linalg.solve(left, right[..., None])[..., 0].T
    good &= c2 > 0
    best = np.where(good, -c1 / np.where(good, 2 * c2, 1.0), np.nan)
    return best + middle, np.where(good, c0 + c1 * best / 2, np.nan), c2


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


def _squares(points: Points, each: Parabola) -> float:
    x = np.log(points.columns["n"][each.places] / each.n_best)
    far = points.y[each.places] - each.low - each.bend * x**2
    return float(points.weight[each.places] @ far**2) if not each.why else 0.0


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


def _refits(points: Points, found: list[Parabola], options: Options) -> Any:
    """(a, b) of refits to points drawn again within their budgets."""
    random = np.random.default_rng(options.seed)
    count = options.bootstrap
    log_n, log_d = [], []
    for each in found:
        places = each.places
        y, size = points.y[places], len(places)
        weight = np.broadcast_to(points.weight[places], (count, size))
        xs = [np.log(points.columns[role][places]) for role in ("n", "d")]
        if options.resample == "case":
            weight = weight * random.multinomial(size, np.full(size, 1 / size), count)
            drawn = [bent(x, y, weight)[0] for x in xs]
        else:
            drawn = _with_noise(xs, y, weight, random)
        for logs, x, best in zip((log_n, log_d), xs, drawn, strict=True):
            inside = (best >= x.min()) & (best <= x.max())
            logs.append(np.where(inside, best, np.nan))
    c = np.log([each.flops for each in found])
    slopes = [_slopes(c, np.stack(logs, 1)) for logs in (log_n, log_d)]
    both = np.stack(slopes, 1)
    return both[np.isfinite(both).all(1)]


def _with_noise(xs: list[Array], y: Array, weight: Array, random: Any) -> list[Array]:
    found = []
    for x in xs:
        smooth = np.polyval(np.polyfit(x, y, 2), x)
        spread = np.sqrt(np.sum((y - smooth) ** 2) / max(len(y) - 3, 1))
        noise = spread * random.standard_normal(weight.shape)
        found.append(bent(x, smooth + noise, weight)[0])
    return found


def _slopes(c: Array, logs: Array) -> Array:
    """Slope of every row's line through the budgets it has."""
    there = np.isfinite(logs)
    count = there.sum(1)
    count = np.where(count >= LEAST_BUDGETS, count, np.nan)
    filled = np.where(there, logs, 0.0)
    mean_c = (there * c).sum(1) / count
    off = np.where(there, c - mean_c[:, None], 0.0)
    return (off * filled).sum(1) / np.where(
        (off**2).sum(1) > 0, (off**2).sum(1), np.nan
    )
