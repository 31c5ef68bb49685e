"""Quasi-Newton descent of many fits side by side: starts, bootstraps and profiles.

BFGS that starts from Gauss-Newton's matrix and forgets nothing (a law has a dozen
parameters at most), with every row at its own step. Rows that are done leave the batch.
`finish` takes the best on with scipy's L-BFGS-B, and returns whichever is lower.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize

from scaling_lab.studies.fitting.objective import Problem
from scaling_lab.studies.law import Array

#: A row is done when a step promises less than this share of its objective.
TOLERANCE = 1e-11
MOST_STEPS = 300
#: Or when so many steps in a row gained less than this share: a valley without an end.
IDLE, PATIENCE = 1e-8, 20
#: Coordinates beyond this are nowhere: exp() must still be a number.
FARTHEST = 300.0
_SHORTEST = 2.0**-24
#: Rows descended together: what fits a processor's cache.
ROWS = 256


@dataclasses.dataclass
class Descent:
    """Coordinates, objectives and whether each row came to rest."""

    at: Array
    value: Array
    rested: Array


def descend(problem: Problem, start_BF: Array, most: int = MOST_STEPS) -> Descent:
    """Every row to its minimum.

    Args:
      problem: its tables have one row, or as many as there are starts.
      start_BF: free coordinates to begin from.
      most: steps of one row.
    """
    rows = len(start_BF)
    found = Descent(start_BF.copy(), np.full(rows, np.inf), np.zeros(rows, bool))
    for first in range(0, rows, ROWS):
        kept = np.arange(first, min(first + ROWS, rows))
        with np.errstate(all="ignore"):  # a row may run away; it is judged by value
            part = _descend(problem.rows(kept), start_BF[kept], most)
        found.at[kept], found.value[kept] = part.at, part.value
        found.rested[kept] = part.rested
    return found


def _descend(problem: Problem, start_BF: Array, most: int) -> Descent:
    at, rows = start_BF.copy(), np.arange(len(start_BF))
    value, slope = problem.value(at)
    found = Descent(at.copy(), value.copy(), np.zeros(len(at), bool))
    inverse = _inverse(problem, at)
    fresh, idle = np.ones(len(at), bool), np.zeros(len(at), int)
    for _ in range(most):
        step = -np.einsum("bij,bj->bi", inverse, slope)
        promised = -np.einsum("bi,bi->b", step, slope)
        short = promised <= TOLERANCE * np.abs(value) + 1e-300
        length, new_at, new_value, new_slope = _search(problem, at, value, slope, step)
        stuck = length == 0
        moved = np.where(stuck[:, None], 0.0, new_at - at)
        turned = new_slope - slope
        gained = np.where(np.isfinite(value), value, 0.0) - new_value
        at, value, slope = new_at, new_value, new_slope
        found.at[rows], found.value[rows] = at, value
        done = (short | stuck) & fresh
        idle = np.where(gained > IDLE * np.abs(value), 0, idle + 1)
        done |= ~np.isfinite(value) | (idle >= PATIENCE)
        found.rested[rows] |= done & np.isfinite(value)
        again = (short | stuck | (gained <= TOLERANCE * np.abs(value))) & ~done
        inverse = _update(inverse, moved, turned)
        fresh = again
        kept = ~done
        if not kept.all():
            rows, at, value, slope = rows[kept], at[kept], value[kept], slope[kept]
            inverse, fresh, again = inverse[kept], fresh[kept], again[kept]
            idle = idle[kept]
            problem = problem.rows(kept)
        if not len(rows):
            break
        if again.any():
            inverse[again] = _inverse(problem.rows(again), at[again])
    return found


def _inverse(problem: Problem, at: Array) -> Array:
    """The inverse of Gauss-Newton's matrix, a little damped."""
    matrix = problem.curvature(at)
    size = matrix.shape[-1]
    diagonal = np.einsum("bii->bi", matrix)
    floor = np.maximum(diagonal.max(1), 1e-300)[:, None]
    scale = 1 / np.sqrt(diagonal + 1e-14 * floor + 1e-100)
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    scaled += 1e-9 * np.eye(size)
    return np.linalg.inv(scaled) * scale[:, :, None] * scale[:, None, :]


def _search(
    problem: Problem, at: Array, value: Array, slope: Array, step: Array
) -> tuple[Array, Array, Array, Array]:
    """Shortens each row's step until its objective falls enough; 0 where never."""
    rows = np.arange(len(at))
    # No coordinate leaps further than a factor e³ at once.
    leap = np.abs(step).max(1)
    length = np.minimum(1.0, 3.0 / np.maximum(leap, 1e-300))
    downhill = np.einsum("bi,bi->b", step, slope)
    result = np.zeros(len(at))
    new_at, new_value, new_slope = at.copy(), value.copy(), slope.copy()
    while len(rows):
        there = at[rows] + length[rows, None] * step[rows]
        seen, its_slope = problem.rows(rows).value(there)
        enough = seen <= value[rows] + 1e-4 * length[rows] * downhill[rows]
        enough &= np.isfinite(seen) & (np.abs(there).max(1) < FARTHEST)
        good = rows[enough]
        new_at[good], new_value[good] = there[enough], seen[enough]
        new_slope[good], result[good] = its_slope[enough], length[good]
        rows = rows[~enough]
        length[rows] *= 0.4
        rows = rows[length[rows] > _SHORTEST]
    return result, new_at, new_value, new_slope


def _update(inverse: Array, moved: Array, turned: Array) -> Array:
    """BFGS' update where the curvature along the step is positive."""
    along = np.einsum("bi,bi->b", moved, turned)
    limit = 1e-10 * np.linalg.norm(moved, axis=1) * np.linalg.norm(turned, axis=1)
    good = along > limit
    rho = np.where(good, 1 / np.where(good, along, 1.0), 0.0)
    bent = np.einsum("bij,bj->bi", inverse, turned)
    twice = rho * (1 + rho * np.einsum("bi,bi->b", turned, bent))
    cross = moved[:, :, None] * bent[:, None, :]
    return (
        inverse
        - rho[:, None, None] * (cross + np.swapaxes(cross, 1, 2))
        + twice[:, None, None] * moved[:, :, None] * moved[:, None, :]
    )


def finish(problem: Problem, at_F: Array) -> tuple[Array, float]:
    """One row carried on by L-BFGS-B, if that finds anything lower.

    In coordinates that Gauss-Newton's matrix makes round, lest it stop in a valley.
    """
    values, vectors = np.linalg.eigh(problem.curvature(at_F[None])[0])
    turn = vectors / np.sqrt(np.maximum(values, max(values.max() * 1e-13, 1e-100)))

    def fun(z: Array) -> tuple[float, Array]:
        value, slope = problem.value((at_F + turn @ z)[None])
        with np.errstate(all="ignore"):  # far out; the line search turns back
            return float(value[0] / scale), turn.T @ slope[0] / scale

    before = float(problem.value(at_F[None])[0][0])
    scale = max(before, 1e-300)
    options = {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-12}
    done = minimize(fun, 0 * at_F, jac=True, method="L-BFGS-B", options=options)
    after = at_F + turn @ done.x
    value = float(problem.value(after[None])[0][0])
    better = value < before and np.abs(after).max() < FARTHEST
    return (after, value) if better else (at_F, before)
