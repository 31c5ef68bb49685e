"""Approach 1: the lowest loss at every compute, whichever run has it.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1: training curves are interpolated
at 1,500 computes between the least and the most; the run that is lowest there says how
many parameters and tokens are best, and lines go through their logarithms. Points that
are no curves (a size trained once) give those that no cheaper point beats. A minimum of
noisy losses lies too low, the more so the more runs compete.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.fitting import check
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.result import Fit, Optimum
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import Array, Path

#: Computes at which curves are read.
COMPUTES = 1500
#: Points that make a size's runs a curve, and places that a line needs.
CURVE, LEAST = 3, 4


def envelope(points: Points, options: Options) -> Fit:
    """Lines through the parameters and tokens of the lowest losses.

    Raises:
      ValueError: units that cannot be, or fewer than four places on the envelope.
    """
    warnings = check.refuse_units(points, laws.law("approach1"))
    table_RC, log_c, log_n = _curves(points)
    every = np.arange(len(log_n))
    path, places, runs = _line(table_RC, log_c, log_n, every)
    if path is None or places is None or runs is None:
        raise ValueError(
            f"the envelope has fewer than {LEAST} places of two sizes: approach1 needs "
            "runs of several sizes over the same computes"
        )
    shown = np.linspace(0, len(places) - 1, min(10, len(places))).astype(int)
    optima = [
        Optimum(
            float(np.exp(log_c[places[s]])),
            float(np.exp(log_n[runs[s]])),
            float(np.exp(log_c[places[s]] - log_n[runs[s]]) / 6),
            float(np.exp(table_RC[runs[s], places[s]])),
        )
        for s in shown
    ]
    far = log_n[runs] - (np.log(path.n_scale) + path.a * log_c[places])
    values = {
        "a": path.a,
        "b": path.b,
        "n_scale": path.n_scale,
        "d_scale": path.d_scale,
    }
    return Fit(
        law="approach1",
        parameters=values,
        path=path,
        interval=options.interval,
        optima=optima,
        points=points,
        objective=float(far @ far),
        held_out=None,
        warnings=warnings,
        options=options,
        path_refits=_refits(table_RC, log_c, log_n, options),
        words="squared residuals of log N about a line by log C, over the "
        f"{len(places)} places of the envelope",
    )


def _curves(points: Points) -> tuple[Array, Array, Array]:
    """Log loss of every run at every compute (NaN outside it), log C, log N of runs."""
    n, log_y = points.columns["n"], np.log(points.y)
    log_c = np.log(points.columns["c"])
    sizes, which = np.unique(n, return_inverse=True)
    if (np.bincount(which) >= CURVE).mean() < 0.5:
        table = np.full((len(n), len(n)), np.nan)
        order = np.argsort(log_c)
        for place, at in enumerate(order):
            # A cheaper point's loss is to be had at more compute too.
            table[at, place:] = log_y[at]
        best = np.nanargmin(table, axis=0)
        own = best == order
        return table[:, own], log_c[order][own], np.log(n)
    grid = np.linspace(log_c.min(), log_c.max(), COMPUTES)
    rows = []
    for size in range(len(sizes)):
        mine = np.flatnonzero(which == size)
        mine = mine[np.argsort(log_c[mine])]
        x, first = np.unique(log_c[mine], return_index=True)
        y = np.minimum.reduceat(log_y[mine], first)
        rows.append(np.interp(grid, x, y, left=np.nan, right=np.nan))
    return np.array(rows), grid, np.log(sizes)


def _line(
    table_RC: Array, log_c: Array, log_n: Array, drawn: Array
) -> tuple[Path | None, Array | None, Array | None]:
    """The line of some runs' envelope; the computes it has; the run at each."""
    part = table_RC[drawn]
    places = np.flatnonzero(np.isfinite(part).any(0))
    runs = drawn[np.nanargmin(part[:, places], axis=0)] if len(places) else places
    # Where one run alone is left its size is no choice: the smallest at the start, the
    # largest at the end.
    many = np.isfinite(table_RC[:, places]).sum(0) > 1
    places, runs = places[many], runs[many]
    if len(places) < LEAST or len(np.unique(log_n[runs])) < 2:
        return None, None, None
    a, at = np.polyfit(log_c[places], log_n[runs], 1)
    path = Path(float(a), float(1 - a), float(np.exp(at)), float(np.exp(-at) / 6))
    return path, places, runs


def _refits(
    table_RC: Array, log_c: Array, log_n: Array, options: Options
) -> Array | None:
    """(a, b) of the envelopes of runs drawn again."""
    random = np.random.default_rng(options.seed)
    found = []
    for _ in range(options.bootstrap):
        drawn = np.unique(random.integers(0, len(log_n), len(log_n)))
        path, _, _ = _line(table_RC, log_c, log_n, drawn)
        if path is not None:
            found.append((path.a, path.b))
    return np.array(found) if found else None
