"""Of a sweep, the rows that are as good as the best of their size and tokens."""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.fitting.table import Points

#: How much worse than the best still counts as best (Li et al. 2025, arXiv 2503.04715).
NEAR = 0.0025


def near_best(points: Points) -> Points:
    """Rows whose loss is within `NEAR` of the lowest of the same (N, D).

    A table without a column of losses holds optima already and is left as it is.
    """
    loss = points.columns.get("judged")
    if loss is None:
        return points
    groups: dict[tuple, list[int]] = {}
    roles = [role for role in ("n", "d") if role in points.columns]
    for place in range(len(points)):
        groups.setdefault(
            tuple(points.columns[role][place] for role in roles), []
        ).append(place)
    kept = np.zeros(len(points), bool)
    for places in groups.values():
        kept[places] = loss[places] <= loss[places].min() * (1 + NEAR)
    return points.keep(
        kept,
        f"{kept.sum()} of {len(points)} rows are within {NEAR:.2%} of the lowest loss "
        f"of their {' and '.join(roles)} ({len(groups)} of them)",
    )
