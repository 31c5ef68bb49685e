"""Efficiencies from measured steps: a robust fit, pulled towards the priors.

The logarithm of predicted over measured seconds is taken as Student-t (4 degrees of
freedom) around zero, each efficiency's logarithm as normal around its prior: the mode
of that posterior, by reweighted Gauss-Newton. Rows of one source share their
circumstances, so a source of n rows weighs as n^0.6.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.cost.efficiencies import PRIORS, Calibration, levels_of
from scaling_lab.cost.points import Points
from scaling_lab.cost.predict import parts_of, unsure

#: Spread of a row's logarithm around its prediction.
NOISE = 0.08
_FREEDOM = 4.0
_SHARED = 0.4
_NUDGE = 1e-3
_ROUNDS = 25
#: Chips whose vendor claims no peak, and how much further their efficiencies may go.
UNCLAIMED = ("cpu",)
_UNKNOWN = 25.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
      calibration: the efficiencies; its interval is not yet fitted.
      spreads: standard deviation of each one's logarithm, by name.
      rows: how many rows carry each one's label.
      residuals: log of predicted over measured, one a row.
    """

    calibration: Calibration
    spreads: dict[str, float]
    rows: dict[str, int]
    residuals: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Term:
    """One number that may move: its prior, and the rows it speaks of."""

    name: str
    general: str
    centre: float
    spread: float
    mask: np.ndarray


def fit(
    points: Points,
    seconds: np.ndarray,
    sources: np.ndarray | None = None,
    start: Calibration | None = None,
    tight: float = 1.0,
) -> Fit:
    """Fits efficiencies to measured steps.

    Args:
      points: what was run. seconds: how long a step took, one a point.
      sources: labels of rows that share their circumstances.
      start: efficiencies to stay near, instead of the priors.
      tight: factor of the priors' spreads.

    Raises:
      ValueError: no row, or a time that is not positive.
    """
    seconds = np.asarray(seconds, float)
    if len(points) == 0 or not np.all(seconds > 0):
        raise ValueError("a fit needs rows, each with a step time above 0 seconds")
    terms = _terms(points, start)
    centre = np.array([term.centre for term in terms])
    spread = np.array([term.spread for term in terms]) * tight
    weight = _weights(sources, len(points)) / NOISE**2
    goal, logs = np.log(seconds), centre.copy()
    inverse = np.eye(len(terms))
    residuals = np.zeros(len(points))
    for _ in range(_ROUNDS):
        eff = Calibration({t.name: x for t, x in zip(terms, logs, strict=True)})
        now = np.log(parts_of(points, eff).step)
        residuals = now - goal
        slopes = _slopes(points, eff, terms, now)
        trust = (_FREEDOM + 1) / (_FREEDOM + (residuals / NOISE) ** 2)
        rows = (weight * trust)[:, None] * slopes
        inverse = np.linalg.inv(slopes.T @ rows + np.diag(spread**-2))
        move = inverse @ (rows.T @ residuals + (logs - centre) / spread**2)
        logs = logs - np.clip(move, -2 * spread, 2 * spread)
        if np.max(np.abs(move / spread)) < 1e-2:
            break
    names = [term.name for term in terms]
    return Fit(
        Calibration(dict(zip(names, logs.tolist(), strict=True))),
        dict(zip(names, np.sqrt(np.diag(inverse)).tolist(), strict=True)),
        {term.name: int(term.mask.sum()) for term in terms},
        residuals,
    )


def held_out(
    points: Points,
    seconds: np.ndarray,
    groups: np.ndarray,
    start: Calibration | None = None,
    tight: float = 1.0,
    sources: np.ndarray | None = None,
) -> np.ndarray:
    """Predicted seconds of every row by a fit that never saw its group.

    Args:
      groups: labels; each in turn is left out. sources: as `fit` takes them.

    Raises:
      ValueError: fewer than two groups.
    """
    labels = np.unique(groups)
    if len(labels) < 2:
        raise ValueError("to leave one group out, there must be two")
    predicted = np.zeros(len(points))
    for label in labels:
        out, kept = np.where(groups == label)[0], np.where(groups != label)[0]
        by = None if sources is None else sources[kept]
        found = fit(points.take(kept), seconds[kept], by, start, tight)
        predicted[out] = parts_of(points.take(out), found.calibration).step
    return predicted


def half_width(
    points: Points,
    seconds: np.ndarray,
    predicted: np.ndarray,
    sources: np.ndarray | None = None,
) -> float:
    """Half of a dense run's 80 % interval, in the logarithm, from held-out rows."""
    missed = np.abs(np.log(predicted / seconds)) / unsure(points)
    weight = _weights(sources, len(points))
    order = np.argsort(missed)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(missed[order][min(np.searchsorted(reached, 0.8), len(order) - 1)])


def _slopes(
    points: Points, eff: Calibration, terms: list[_Term], now: np.ndarray
) -> np.ndarray:
    """How the log step moves with each term: a label's is the general one's, masked."""
    general = {}
    for name in PRIORS:
        then = np.log(parts_of(points, eff.nudged(name, _NUDGE)).step)
        general[name] = (then - now) / _NUDGE
    return np.stack([general[t.general] * t.mask for t in terms], axis=1)


def _terms(points: Points, start: Calibration | None) -> list[_Term]:
    """What a fit on these points may move."""
    terms = []
    whole = np.ones(len(points))
    known = start.logs if start is not None else {}
    for name, prior in PRIORS.items():
        centre = known.get(name, float(np.log(prior.value)))
        terms.append(_Term(name, name, centre, prior.spread, whole))
        for level, spread in prior.levels.items():
            labels, inverse = levels_of(points, level)
            for label in sorted(set(labels)):
                key = f"{name}@{level}:{label}"
                mask = (np.asarray(labels)[inverse] == label).astype(float)
                centre = known.get(key, prior.centre(f"{level}:{label}"))
                # A chip without a claimed peak is told in units: any rate may be its.
                wide = _UNKNOWN if level == "chip" and label in UNCLAIMED else 1.0
                terms.append(_Term(key, name, centre, spread * wide, mask))
    return terms


def _weights(sources: np.ndarray | None, count: int) -> np.ndarray:
    if sources is None:
        return np.ones(count)
    _, inverse, sizes = np.unique(sources, return_inverse=True, return_counts=True)
    return sizes[inverse] ** -_SHARED
