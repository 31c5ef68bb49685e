"""One fit: where the objective is least, by either solver."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from scaling_lab.studies.fitting.descend import descend, finish
from scaling_lab.studies.fitting.objective import Objective, Problem
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.project import Projection
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import Array, Law, design

#: Starts of the first descents, their steps, and how many are carried to the end.
STARTS, FIRST_STEPS, CARRIED = 48, 60, 6
#: Logarithm of a coefficient, beside the response's, that stands for zero.
NOTHING = -60.0


@dataclasses.dataclass(frozen=True)
class Solved:
    """A minimum.

    Attributes:
      problem: what was minimised, with the coordinates held where they are.
      at: all coordinates. value: the objective.
      starts: descents that were made; agreeing: how many ended within 0.01 % of it.
      rested: whether the descent came to rest.
    """

    problem: Problem
    at: Array
    value: float
    starts: int
    agreeing: int
    rested: bool

    @property
    def at_free(self) -> Array:
        """The coordinates that may move."""
        return self.at[list(self.problem.free)]


def objective_of(law: Law, options: Options) -> Objective:
    """What is minimised, by what was asked and the law's habit."""
    kind = options.loss or ("huber" if options.huber is not None else law.loss)
    if options.solver == "projection" and not (options.loss or options.huber):
        kind = "mse"
    if options.solver == "projection" and kind != "mse":
        raise ValueError(
            f"projection minimises squares (--loss mse), not {kind}; leave out "
            "--solver for it"
        )
    return Objective(kind, options.huber or law.delta)


def held(law: Law, options: Options) -> dict[str, float]:
    """Parameters that are held, by name.

    Raises:
      ValueError: the law has no such parameter, or it cannot have that value.
    """
    found = options.numbers("fix")
    for name, value in found.items():
        if name not in law.names:
            raise ValueError(f"fix {name}: parameters are {', '.join(law.names)}")
        if law.parameters[law.names.index(name)].positive and value <= 0:
            raise ValueError(f"fix {name}={value:g}: it must be positive")
    return found


def problem_of(law: Law, points: Points, options: Options) -> Problem:
    """The fit as a problem of the coordinates that may move."""
    fixed = held(law, options)
    base = law.coordinates(
        {p.name: fixed.get(p.name, p.starts[0]) for p in law.parameters}
    )
    free = tuple(n for n, name in enumerate(law.names) if name not in fixed)
    return Problem(
        law.on(points.columns),
        objective_of(law, options),
        np.log(points.y),
        points.weight,
        free,
        base,
    )


def solve(law: Law, points: Points, options: Options) -> Solved:
    """The least objective over all starts, carried on until it rests."""
    problem = problem_of(law, points, options)
    if not problem.free:
        value = float(problem.value(problem.base[None, []])[0][0])
        return Solved(problem, problem.base, value, 0, 0, True)
    search = _search(law, points, problem)
    if options.solver == "projection":
        if search is None:
            raise ValueError(
                "projection needs a sum of powers with every parameter free; this is "
                f"{law.formula}" + (" with some held" if options.fix else "")
            )
        found = search.best()
        problem, at = _without_nothing(problem, found.at)
        value = float(problem.value(at[None, list(problem.free)])[0][0])
        return Solved(problem, at, value, found.made, found.agreeing, True)
    places = list(problem.free)
    starts = _grid(law, places)
    if search is not None:
        seeds = [search.coordinates(q) for q in search.seeds]
        projected = np.maximum([search.best().at, *seeds], NOTHING)
        starts = np.concatenate([projected[:, places], starts])
    first = descend(problem, starts, FIRST_STEPS)
    best = np.argsort(first.value)[:CARRIED]
    last = descend(problem, first.at[best])
    place = int(np.argmin(last.value))
    at, value = finish(problem, last.at[place])
    limit = value * (1 + 1e-4) + 1e-14 * len(points)
    near = max(int((each.value <= limit).sum()) for each in (first, last))
    whole = problem.whole(at[None])[0]
    return Solved(problem, whole, value, len(starts), near, bool(last.rested[place]))


def _search(law: Law, points: Points, problem: Problem) -> Projection | None:
    """Variable projection of the fit, where the law and what is held allow it.

    Its squares are the residuals' where those are minimised, else relative: then its
    minimum and its seeds are starts.
    """
    if not law.terms or len(problem.free) < len(law.parameters):
        return None
    weight = points.weight
    if problem.objective.kind != "mse":
        weight = weight / points.y**2
    return Projection(law, design(law, points.columns), points.y, weight)


def _without_nothing(problem: Problem, at: Array) -> tuple[Problem, Array]:
    """Coefficients of zero are held there: no descent leads back from them."""
    at = np.maximum(at, NOTHING)
    free = tuple(n for n in problem.free if at[n] > NOTHING)
    return dataclasses.replace(problem, free=free, base=at), at


def _grid(law: Law, places: list[int]) -> Array:
    """Starts from all over: every combination, or as many spread among them."""
    axes = []
    for place in places:
        each = law.parameters[place]
        axes.append(np.log(each.starts) if each.positive else np.array(each.starts))
    every = np.array(list(itertools.islice(itertools.product(*axes), 100_000)))
    if len(every) > STARTS:
        order = np.random.default_rng(0).permutation(len(every))
        every = every[order[:STARTS]]
    return every
