"""Efficiencies from measured steps: a robust fit, pulled towards the priors.

The logarithm of predicted over measured seconds is taken as Student-t (4 degrees of
freedom) around zero, each efficiency's logarithm as normal around its prior: the mode
of that posterior, by reweighted Gauss-Newton with steps halved until they help. Rows
of one source share their circumstances, so a source of n rows weighs as n^0.6.
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
_ROUNDS = 60
#: How often a step that makes things worse is halved.
_HALVINGS = 8
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
    weight = _weights(sources, len(points)) / NOISE**2
    goal = _Goal(points, np.log(seconds), weight, terms, tight)
    logs = goal.centre.copy()
    residuals = goal.residuals(logs)
    inverse = np.eye(len(terms))
    for _ in range(_ROUNDS):
        slopes = _slopes(points, goal.calibration(logs), terms, residuals + goal.logs)
        trust = (_FREEDOM + 1) / (_FREEDOM + (residuals / NOISE) ** 2)
        rows = (weight * trust)[:, None] * slopes
        inverse = np.linalg.inv(slopes.T @ rows + np.diag(goal.spread**-2))
        pull = (logs - goal.centre) / goal.spread**2
        move = inverse @ (rows.T @ residuals + pull)
        logs, residuals, moved = goal.stepped(logs, residuals, move)
        if np.max(np.abs(moved / goal.spread)) < 1e-2:
            break
    names = [term.name for term in terms]
    return Fit(
        Calibration(dict(zip(names, logs.tolist(), strict=True))),
        dict(zip(names, np.sqrt(np.diag(inverse)).tolist(), strict=True)),
        {term.name: int(term.mask.sum()) for term in terms},
        residuals,
    )


class _Goal:
    """What a fit makes small, at log efficiencies in the order of its terms."""

    def __init__(
        self,
        points: Points,
        logs: np.ndarray,
        weight: np.ndarray,
        terms: list[_Term],
        tight: float,
    ):
        self.points, self.logs, self.weight, self.terms = points, logs, weight, terms
        self.centre = np.array([term.centre for term in terms])
        self.spread = np.array([term.spread for term in terms]) * tight

    def calibration(self, logs: np.ndarray) -> Calibration:
        names = [term.name for term in self.terms]
        return Calibration(dict(zip(names, logs.tolist(), strict=True)))

    def residuals(self, logs: np.ndarray) -> np.ndarray:
        """Log of predicted over measured, one a row."""
        return np.log(parts_of(self.points, self.calibration(logs)).step) - self.logs

    def unlikely(self, logs: np.ndarray, residuals: np.ndarray) -> float:
        """Minus the logarithm of the posterior, up to a constant."""
        far = np.log1p((residuals / NOISE) ** 2 / _FREEDOM)
        rows = (_FREEDOM + 1) / 2 * NOISE**2 * float(np.sum(self.weight * far))
        return rows + float(np.sum(((logs - self.centre) / self.spread) ** 2)) / 2

    def stepped(
        self, logs: np.ndarray, residuals: np.ndarray, move: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The efficiencies after a move, halved until it helps; their residuals."""
        before = self.unlikely(logs, residuals)
        move = np.clip(move, -2 * self.spread, 2 * self.spread)
        for _ in range(_HALVINGS):
            after = self.residuals(logs - move)
            if self.unlikely(logs - move, after) <= before:
                return logs - move, after, move
            move = move / 2
        return logs, residuals, 0 * move


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
