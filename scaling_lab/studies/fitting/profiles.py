"""Profiles: the least objective with one parameter held, and the interval it says.

A value is inside where the objective rises by no more than `rise`. Of squares that is
the F test's; of Huber's losses the same with what its residuals are worth: the mean
square of the loss's slope over its mean curvature (Huber 1981, Robust Statistics,
section 7.10; Schrader and Hettmansperger 1980, Biometrika 67, 93). Where most
residuals are on Huber's lines the curvature is the density of residuals at zero.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.stats import t as student

from scaling_lab.studies.fitting.descend import descend
from scaling_lab.studies.fitting.solve import Solved
from scaling_lab.studies.fitting.uncertainty import errors
from scaling_lab.studies.law import Array, Law

#: Points on each side of a profile, and how far it goes, in standard errors.
PROFILE, REACHES = 10, (3.0, 9.0, 27.0)
#: A point of a profile is better where it is lower by more than this share.
BETTER = 1e-4
#: Steps of one of its descents, which the next goes on from.
STEPS = 100
#: Parts of a step that crosses a limit, and how often it is parted again.
PARTS, FINER = 6, 1


@dataclasses.dataclass(frozen=True)
class Profile:
    """The least objective with one parameter held at each of some values."""

    values: Array
    objective: Array
    low: float | None
    high: float | None


def profile(solved: Solved, law: Law, name: str, share: float) -> Profile:
    """The objective with one free parameter held at values about its best one.

    As far as the points can tell on both sides, or as `REACHES` go.

    Args:
      share: of the interval, as 0.95.
    """
    problem, place = solved.problem, law.names.index(name)
    cov, index = errors(solved), problem.free.index(place)
    error = min(max(float(np.sqrt(cov[index, index])), 1e-6), 1.0)
    # Along the valley, as the covariance has it.
    along = cov[:, index] / max(cov[index, index], 1e-300)
    limit = solved.value + rise(solved, share)
    held = _Held(solved, place)
    offsets, found, ends = np.zeros(0), np.zeros(0), (None, None)
    for reach in REACHES:
        offsets = np.linspace(-reach, reach, 2 * PROFILE + 1) * error
        at, found = held.valley(offsets, along)
        last = reach == REACHES[-1]
        # What a better descent finds is lower: where this is inside, so is that.
        if not last and min(found[0], found[-1]) <= limit:
            continue
        at, found = held.walked(offsets, at, found)
        ends = tuple(held.end(offsets, at, found, limit, side) for side in (-1, 1))
        if None not in ends:
            break
    values = _values(solved, law, place, offsets)
    low, high = (
        None if end is None else float(_values(solved, law, place, end)) for end in ends
    )
    return Profile(values, found, low, high)


def _values(solved: Solved, law: Law, place: int, offsets: Array | float) -> Array:
    """A parameter's values at offsets of its coordinate."""
    at = solved.at[place] + np.asarray(offsets)
    return np.exp(np.minimum(at, 700)) if law.parameters[place].positive else at


def rise(solved: Solved, share: float) -> float:
    """How far above its least the objective is at the ends of an interval.

    Half of t² times the mean square of the loss's slope over its mean curvature: for
    squares, t² times the residuals' variance.
    """
    problem = solved.problem
    spare = max(len(problem.log_y) - len(problem.free), 1)
    t_squared = float(student.ppf((1 + share) / 2, spare)) ** 2
    if problem.objective.kind != "huber":
        return t_squared * solved.value / spare
    log_N = problem.model.log_values(solved.at[None])[0][0]
    far, weight = log_N - problem.log_y, problem.weight
    delta = problem.objective.delta
    slopes = weight * np.clip(far, -delta, delta)
    square = float(slopes @ slopes) / spare * len(far)
    return 0.5 * t_squared * square / _curvature(far, weight, delta, len(problem.free))


def _curvature(far: Array, weight: Array, delta: float, moving: int) -> float:
    """The weighted number of residuals within delta of zero, smoothed.

    As many residuals as parameters are zero, or nearly, because the lines of the loss
    go through points: those say nothing of the noise. The others are a little smaller
    than it.
    """
    count = len(far)
    order = np.argsort(np.abs(far))[min(moving, count - 2) :]
    rest = far[order] * np.sqrt(count / max(count - moving, 1))
    width = max(float(np.median(np.abs(rest))) * 1.4826, 1e-300)
    width = np.hypot(delta, 1.06 * width * len(rest) ** -0.2)
    near = np.exp(-0.5 * (rest / width) ** 2) / (np.sqrt(2 * np.pi) * width)
    density = float(weight[order] @ near / weight[order].sum())
    return max(float(weight.sum()) * min(2 * delta * density, 1.0), 1e-300)


class _Held:
    """The fit with one coordinate held at offsets from its best."""

    def __init__(self, solved: Solved, place: int) -> None:
        self.solved, self.place = solved, place
        self.rest = tuple(each for each in solved.problem.free if each != place)
        self.best = solved.at[list(self.rest)]

    def at(self, offsets: Array, starts: Array) -> tuple[Array, Array]:
        """The other coordinates' best from some starts, and the objective there."""
        base = np.repeat(self.solved.at[None], len(offsets), 0)
        base[:, self.place] += offsets
        held = dataclasses.replace(self.solved.problem, free=self.rest, base=base)
        if not self.rest:
            return starts, held.value(starts)[0]
        found = descend(held, starts, STEPS)
        return found.at, found.value

    def valley(self, offsets: Array, along: Array) -> tuple[Array, Array]:
        """The others' best at every offset, along the covariance's valley."""
        places = [self.solved.problem.free.index(each) for each in self.rest]
        return self.at(offsets, self.best + offsets[:, None] * along[places])

    def walked(self, offsets: Array, at: Array, value: Array) -> tuple[Array, Array]:
        """Every point again from where its neighbours ended, until none gains.

        Far out the valley bends, and what led along it straight ends elsewhere.
        """
        rows, moved = np.arange(len(offsets)), np.ones(len(offsets), bool)
        for _ in range(2 * PROFILE):
            gained = np.zeros(len(offsets), bool)
            for step in (1, -1):
                to = rows[(rows >= step) & (rows - step < len(rows))]
                to = to[moved[to - step]]
                if not len(to):
                    continue
                new_at, new = self.at(offsets[to], at[to - step])
                better = new < value[to] * (1 - BETTER)
                kept = to[better]
                at[kept], value[kept], gained[kept] = new_at[better], new[better], True
            moved = gained
            if not moved.any():
                break
        return at, value

    def end(
        self, offsets: Array, at: Array, value: Array, limit: float, side: int
    ) -> float | None:
        """Where the objective crosses a limit on one side; None: it does not.

        The crossing's neighbours are parted `FINER` times: objectives bend, and a line
        between far points would cross too early.
        """
        middle = len(offsets) // 2
        offsets, at, value = (x[middle::side] for x in (offsets, at, value))
        for _ in range(FINER + 1):
            above = np.flatnonzero(value > limit)
            if not len(above) or not above[0]:
                return None
            pair = [above[0] - 1, above[0]]
            offsets, at, value = offsets[pair], at[pair], value[pair]
            parts = np.linspace(offsets[0], offsets[1], PARTS + 1)
            shares = np.linspace(0, 1, PARTS + 1)[1:-1, None]
            new_at, new = self.at(parts[1:-1], at[0] + shares * (at[1] - at[0]))
            at = np.concatenate([at[:1], new_at, at[1:]])
            value = np.concatenate([value[:1], new, value[1:]])
            offsets = parts
        above = int(np.flatnonzero(value > limit)[0])
        low, high = value[above - 1], value[above]
        share = (limit - low) / (high - low) if np.isfinite(high) else 0.0
        return float(offsets[above - 1] + share * (offsets[above] - offsets[above - 1]))
