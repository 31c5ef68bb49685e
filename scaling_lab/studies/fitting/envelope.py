"""Approach 1: the lowest loss at every compute, whichever run has it.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1: training curves are interpolated
at 1,500 computes between the least and the most; the run that is lowest there says how
many parameters and tokens are best, and lines go through their logarithms. Points that
are no curves (a size trained once) give those that no cheaper point beats. A minimum of
noisy losses lies too low, the more so the more runs compete.

Where the smallest or the largest size wins, a better one may lie outside: the optimum
is known by one bound only. Such computes are left out, all of them up to the last where
the smallest wins and from the first where the largest does; were only the winners
themselves dropped, noise would choose which computes stay.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.fitting import check
from scaling_lab.studies.fitting.groups import within
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.result import Fit, Optimum
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import Array, Path

#: Computes at which curves are read.
COMPUTES = 1500
#: Points that make a size's runs a curve.
CURVE = 3
#: Places that a line needs and sizes that must win somewhere; sizes below which it is
#: doubtful.
LEAST, SIZES, FEW = 4, 3, 5
#: Computes closer than this (in logarithms) are one, where points are no curves.
SAME = 0.02


@dataclasses.dataclass(frozen=True)
class _Envelope:
    """Where runs win: places among the computes, the run at each, and what was cut.

    Attributes:
      small, large: places left out because the smallest, the largest size wins there,
        or because they are beyond such a place.
      edge: places left out whose winner is the smallest or largest that was there.
    """

    places: Array
    runs: Array
    small: int
    large: int
    edge: int


def envelope(points: Points, options: Options) -> Fit:
    """Lines through the parameters and tokens of the lowest losses.

    Raises:
      ValueError: units that cannot be, fewer than three sizes, or fewer than three that
        win anywhere between the smallest and the largest.
    """
    warnings = check.refuse_units(points, laws.law("approach1"))
    table_RC, log_c, log_n = _curves(points)
    found = _winners(table_RC, log_n, np.arange(len(log_n)))
    _refuse(found, log_n)
    path = _line(found, log_c, log_n)
    places, runs = found.places, found.runs
    winning = len(np.unique(log_n[runs]))
    if not _are_curves(points):
        warnings.append(
            f"most sizes were run at fewer than {CURVE} computes: single points, no "
            "curves; the lowest of them is a rough optimum, of scattered points a "
            "biased one: --law isoflop or chinchilla says more"
        )
    if winning < FEW:
        warnings.append(
            f"the envelope has {winning} sizes between the smallest and the largest: "
            "its line is rough; more sizes, closer together, would firm it"
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
    return Fit(
        law="approach1",
        parameters=dataclasses.asdict(path),
        path=path,
        interval=options.interval,
        optima=optima,
        points=dataclasses.replace(points, notes=(*points.notes, _told(found))),
        objective=float(far @ far),
        held_out=None,
        warnings=warnings,
        options=options,
        path_refits=_refits(table_RC, log_c, log_n, options),
        words="squared residuals of log N about a line by log C, over the "
        f"{len(places)} places of the envelope",
    )


def _are_curves(points: Points) -> bool:
    runs = np.unique(points.columns["n"], return_counts=True)[1]
    return bool((runs >= CURVE).mean() >= 0.5)


def _curves(points: Points) -> tuple[Array, Array, Array]:
    """Log loss of every run at every compute (NaN outside it), log C, log N of runs."""
    n, log_y = points.columns["n"], np.log(points.y)
    log_c = np.log(points.columns["c"])
    if not _are_curves(points):
        groups = within(log_c, SAME)
        table = np.full((len(n), len(groups)), np.nan)
        for place, group in enumerate(groups):
            # A cheaper point's loss is to be had at more compute too.
            table[group, place:] = log_y[group, None]
        best = np.nanargmin(table, axis=0)
        own = [winner in group for winner, group in zip(best, groups, strict=True)]
        middles = np.array([np.median(log_c[group]) for group in groups])
        return table[:, own], middles[own], np.log(n)
    sizes, which = np.unique(n, return_inverse=True)
    grid = np.linspace(log_c.min(), log_c.max(), COMPUTES)
    rows = []
    for size in range(len(sizes)):
        mine = np.flatnonzero(which == size)
        mine = mine[np.argsort(log_c[mine])]
        x, first = np.unique(log_c[mine], return_index=True)
        y = np.minimum.reduceat(log_y[mine], first)
        rows.append(np.interp(grid, x, y, left=np.nan, right=np.nan))
    return np.array(rows), grid, np.log(sizes)


def _winners(table_RC: Array, log_n: Array, drawn: Array) -> _Envelope:
    """The envelope of some runs, without the computes whose optimum has one bound."""
    part, sizes = table_RC[drawn], log_n[drawn]
    there = np.isfinite(part)
    places = np.flatnonzero(there.any(0))
    there = there[:, places]
    won = np.nanargmin(part[:, places], axis=0) if len(places) else places
    size, order = sizes[won], np.arange(len(places))
    low, high = sizes.min(), sizes.max()
    smallest, largest = np.flatnonzero(size <= low), np.flatnonzero(size >= high)
    small = order <= (smallest[-1] if len(smallest) else -1)
    large = (order >= (largest[0] if len(largest) else len(order))) & ~small
    # Or the edge of the sizes whose curves reach that compute.
    edge = size <= np.where(there, sizes[:, None], np.inf).min(0, initial=np.inf)
    edge |= size >= np.where(there, sizes[:, None], -np.inf).max(0, initial=-np.inf)
    edge &= ~small & ~large
    kept = ~(small | large | edge)
    counts = (int(small.sum()), int(large.sum()), int(edge.sum()))
    return _Envelope(places[kept], drawn[won[kept]], *counts)


def _told(found: _Envelope) -> str:
    """What was left out, in words."""
    cut = found.small + found.large + found.edge
    return (
        f"{cut} of {cut + len(found.places)} computes left out, as a better size may "
        f"lie outside those there are: {found.small} up to the last where the smallest "
        f"is lowest, {found.large} from the first where the largest is, {found.edge} "
        "where only larger or only smaller ones were there to compare"
    )


def _refuse(found: _Envelope, log_n: Array) -> None:
    sizes = np.unique(log_n)
    if len(sizes) < SIZES:
        raise ValueError(
            f"approach1 has {len(sizes)} size{'s' if len(sizes) > 1 else ''} ("
            f"{', '.join(f'{np.exp(each):.3g}' for each in sizes)}): the best one may "
            "lie below the smallest or above the largest at every compute; it needs "
            "runs of five sizes or more over the same computes"
        )
    winning = len(np.unique(log_n[found.runs]))
    if winning < SIZES or len(found.places) < LEAST:
        raise ValueError(
            f"the envelope has {winning} sizes at {len(found.places)} computes, and "
            f"needs {SIZES} at {LEAST}; {_told(found)}. Add sizes between "
            f"{np.exp(sizes[0]):.3g} and {np.exp(sizes[-1]):.3g} and beyond both, over "
            "the same computes"
        )


def _line(found: _Envelope, log_c: Array, log_n: Array) -> Path:
    """The line through an envelope's sizes by compute."""
    a, at = np.polyfit(log_c[found.places], log_n[found.runs], 1)
    return Path(float(a), float(1 - a), float(np.exp(at)), float(np.exp(-at) / 6))


def _refits(
    table_RC: Array, log_c: Array, log_n: Array, options: Options
) -> Array | None:
    """(a, b) of the envelopes of runs drawn again."""
    random = np.random.default_rng(options.seed)
    refits = []
    for _ in range(options.bootstrap):
        drawn = np.unique(random.integers(0, len(log_n), len(log_n)))
        found = _winners(table_RC, log_n, drawn)
        if len(found.places) >= LEAST and len(np.unique(log_n[found.runs])) >= SIZES:
            path = _line(found, log_c, log_n)
            refits.append((path.a, path.b))
    return np.array(refits) if refits else None
