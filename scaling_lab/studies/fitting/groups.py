"""Computes to budgets: which points were given the same FLOPs, and whether any were."""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.law import Array

#: Budgets further apart than this (in logarithms) are two: steps are whole and FLOPs
#: are counted to a few percent.
APART = 0.15
#: The least and the most FLOPs of one budget lie within this factor,
WIDEST = 2.0
#: and the next budget is this many times as far as its own points from one another.
CLEAR = 2.0


def budgets(c: Array) -> list[Array]:
    """Places of the points of every budget, the least first.

    Computes that follow each other by less than `APART` are one, however far that goes:
    `distinct` says which of them can be budgets.
    """
    return chained(np.log(c), APART)


def chained(logs: Array, apart: float) -> list[Array]:
    """Places of what follows each other by at most ``apart``, the least first."""
    order = np.argsort(logs, kind="stable")
    cuts = np.flatnonzero(np.diff(logs[order]) > apart) + 1
    return np.split(order, cuts)


def within(logs: Array, span: float) -> list[Array]:
    """Places of what lies within ``span`` of its group's least, the least first."""
    order = np.argsort(logs, kind="stable")
    starts, first = [], -np.inf
    for place, value in enumerate(logs[order]):
        if value - first > span:
            starts.append(place)
            first = value
    return np.split(order, starts[1:])


def distinct(c: Array, groups: list[Array]) -> list[bool]:
    """Of every group whether it can be one budget: narrow, and apart from the next.

    Points scattered over FLOPs fall into groups too; those are as far from each other
    as the points inside them.
    """
    logs = [np.sort(np.log(c[group])) for group in groups]
    found = []
    for place, mine in enumerate(logs):
        inner = float(np.diff(mine).max(initial=0.0))
        before = mine[0] - logs[place - 1][-1] if place else np.inf
        after = logs[place + 1][0] - mine[-1] if place + 1 < len(logs) else np.inf
        narrow = mine[-1] - mine[0] <= np.log(WIDEST)
        found.append(bool(narrow and CLEAR * inner <= min(before, after)))
    return found
