"""How far the constants may be off: bootstrap, flat directions, leverage.

Every refit starts where the fit ended and they descend side by side, so that thousands
take seconds.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.studies.fitting.descend import descend
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.solve import Solved
from scaling_lab.studies.law import Array, Law

#: A direction this long (standard error, in e-folds of a coefficient) is called flat.
FLAT = 0.5
#: What is known of a coordinate that no point tells of: a factor of a thousand.
ANYWHERE = 7.0
#: Points of which every one is left out in turn; beyond, the step is linear.
LEFT_OUT = 600


@dataclasses.dataclass(frozen=True)
class Direction:
    """A way to move parameters that the points hardly notice.

    Attributes:
      error: its standard error: how far, in e-folds or units, is still likely.
      moves: (parameter, one standard error's move), the largest first.
      words: in a sentence.
    """

    error: float
    moves: tuple[tuple[str, float], ...]
    words: str


def errors(solved: Solved) -> Array:
    """Covariance of the free coordinates, linearised: (free, free)."""
    problem, at = solved.problem, solved.at_free
    log_BN, state = problem.model.log_values(problem.whole(at[None]))
    slopes = problem.model.jacobian(state)[0][:, list(problem.free)]
    far = problem.objective.residuals(log_BN, problem.log_y)[0]
    if problem.objective.kind == "mse":
        slopes = slopes * np.exp(log_BN[0])[:, None]
    root = np.sqrt(problem.weight)
    slopes, far = slopes * root[:, None], far * root
    spare = max(len(far) - len(at), 1)
    if problem.objective.kind == "huber":
        # Lines, not squares: the spread is what the middle of the residuals says.
        noise = max(float(np.median(np.abs(far))) * 1.4826, 1e-9) ** 2
    else:
        noise = max(float(far @ far) / spare, 1e-18)
    # As if a coordinate were known to ANYWHERE: what no point tells has that error.
    known = slopes.T @ slopes / noise + np.eye(len(at)) / ANYWHERE**2
    scale = 1 / np.sqrt(np.diag(known))
    return np.linalg.inv(known * scale * scale[:, None]) * scale * scale[:, None]


def condition(solved: Solved) -> float:
    """Condition number of the squares' matrix at the minimum."""
    matrix = solved.problem.curvature(solved.at_free[None])[0]
    values = np.linalg.eigvalsh(matrix)
    return float(values.max() / max(values.min(), values.max() * 1e-18))


def flat(solved: Solved, law: Law) -> list[Direction]:
    """Directions that the points hardly notice, the flattest first."""
    problem = solved.problem
    values, vectors = np.linalg.eigh(errors(solved))
    found = []
    for value, vector in sorted(
        zip(values, vectors.T, strict=True), key=lambda p: -p[0]
    ):
        error = float(np.sqrt(max(value, 0.0)))
        if error < FLAT:
            continue
        vector = vector * np.sign(vector[np.argmax(np.abs(vector))])
        named = [
            (law.parameters[p], x * error)
            for p, x in zip(problem.free, vector, strict=True)
        ]
        named.sort(key=lambda pair: -abs(pair[1]))
        moves = [
            (p.name, float(x))
            for p, x in named
            if abs(x) > 0.1 * error or not p.positive
        ]
        found.append(Direction(error, tuple(moves), _said(named, error)))
    return found


def _said(named: list, error: float) -> str:
    parts = []
    for parameter, move in named:
        if parameter.positive and abs(move) > 0.1 * error:
            sign = "×" if move > 0 else "÷"
            factor = f"{sign} {np.exp(abs(move)):.3g}"
            parts.append(f"{parameter.name} {factor if abs(move) < 4 else 'at will'}")
        elif not parameter.positive and abs(move) > 0.003:
            parts.append(f"{parameter.name} {move:+.2g}")
    return " with ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]


def bootstrap(solved: Solved, options: Options) -> Array:
    """Coordinates of refits: (fit, parameter). Rows that did not end are left out."""
    problem, count = solved.problem, options.bootstrap
    random = np.random.default_rng(options.seed)
    points = len(problem.log_y)
    if options.resample == "case":
        drawn = random.multinomial(points, np.full(points, 1 / points), count)
        again = dataclasses.replace(problem, weight=problem.weight * drawn)
    else:
        noisy = _noisy(solved, random, count)
        again = dataclasses.replace(problem, log_y=noisy)
    start = np.repeat(solved.at_free[None], count, 0)
    found = descend(again, start)
    return problem.whole(found.at[np.isfinite(found.value)])


def _noisy(solved: Solved, random: np.random.Generator, count: int) -> Array:
    """The fit with normal noise as wide as its residuals, on logarithms."""
    problem = solved.problem
    log_N = problem.model.log_values(solved.at[None])[0][0]
    far = log_N - problem.log_y
    spread = np.sqrt(far @ far / max(len(far) - len(problem.free), 1))
    return log_N + spread * random.standard_normal((count, len(far)))


def leave_one_out(solved: Solved) -> Array:
    """Coordinates without each point in turn: (point, parameter)."""
    problem = solved.problem
    points = len(problem.log_y)
    if points <= LEFT_OUT:
        weight = problem.weight * (1 - np.eye(points))
        again = dataclasses.replace(problem, weight=weight)
        start = np.repeat(solved.at_free[None], points, 0)
        return problem.whole(descend(again, start).at)
    log_BN, state = problem.model.log_values(solved.at[None])
    by_log = problem.objective.parts(log_BN, problem.log_y, problem.weight)[1][0]
    slopes = problem.model.jacobian(state)[0][:, list(problem.free)]
    matrix = problem.curvature(solved.at_free[None])[0]
    steps = np.linalg.lstsq(matrix, (slopes * by_log[:, None]).T, rcond=1e-13)[0].T
    return problem.whole(solved.at_free + steps)
