"""Parabolas by least squares, many at once, and their refits to points drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np

from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.result import Parabola
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import Array

#: Points a parabola needs, and budgets a line needs.
LEAST_POINTS, LEAST_BUDGETS = 3, 2


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


def squares(points: Points, each: Parabola) -> float:
    """Weighted squares of the residuals about a budget's parabola."""
    x = np.log(points.columns["n"][each.places] / each.n_best)
    far = points.y[each.places] - each.low - each.bend * x**2
    return float(points.weight[each.places] @ far**2) if not each.why else 0.0


def refits(points: Points, found: list[Parabola], options: Options) -> Any:
    """(a, b) of refits to points drawn again within their budgets.

    None where every parabola goes through its points. Where some do, they get noise as
    wide as the others have it: rows that are all needed cannot be drawn again.
    """
    spare = sum(len(each.places) - LEAST_POINTS for each in found)
    if not spare:
        return None
    spread = np.sqrt(sum(squares(points, each) for each in found) / spare)
    random = np.random.default_rng(options.seed)
    count = options.bootstrap
    log_n, log_d = [], []
    for each in found:
        places = each.places
        y, size = points.y[places], len(places)
        weight = np.broadcast_to(points.weight[places], (count, size))
        xs = [np.log(points.columns[role][places]) for role in ("n", "d")]
        if size <= LEAST_POINTS:
            # The spread is of points of weight 1.
            noise = spread / np.sqrt(points.weight[places])
            drawn = _with_noise(xs, y, weight, noise, random)
        elif options.resample == "case":
            weight = weight * random.multinomial(size, np.full(size, 1 / size), count)
            drawn = [bent(x, y, weight)[0] for x in xs]
        else:
            drawn = _with_noise(xs, y, weight, None, random)
        for logs, x, best in zip((log_n, log_d), xs, drawn, strict=True):
            inside = (best >= x.min()) & (best <= x.max())
            logs.append(np.where(inside, best, np.nan))
    c = np.log([each.flops for each in found])
    slopes = [_slopes(c, np.stack(logs, 1)) for logs in (log_n, log_d)]
    both = np.stack(slopes, 1)
    both = both[np.isfinite(both).all(1)]
    return both if len(both) else None


def _with_noise(
    xs: list[Array], y: Array, weight: Array, spread: Array | None, random: Any
) -> list[Array]:
    """Optima of the parabolas with noise, as wide as their residuals if not told."""
    found = []
    for x in xs:
        smooth = np.polyval(np.polyfit(x, y, 2), x)
        own = np.sqrt(np.sum((y - smooth) ** 2) / max(len(y) - LEAST_POINTS, 1))
        noise = own if spread is None else spread
        noise = noise * random.standard_normal(weight.shape)
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
