"""Variable projection: search the exponents, solve the coefficients.

A sum of powers is linear in its coefficients. Given the exponents they are a
non-negative least squares problem, solved exactly; what remains is a smooth function of
the exponents alone, whose valley is round where that of all parameters is a canyon
(condition number about 11 against 3.5e11 on Chinchilla's points). Squares only, of the
residuals themselves or relative ones.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from scaling_lab.studies.law import Array, Law

#: Exponents that the grid tries, and how many combinations at most.
GRID = (0.05, 0.12, 0.2, 0.3, 0.45, 0.65, 0.95)
MOST = 1200
KEPT = 6
#: Exponents of a search; what ends on them is no power.
BOUNDS = (-3.0, 8.0)


@dataclasses.dataclass(frozen=True)
class Projected:
    """A minimum.

    Attributes:
      at: coordinates in the law's order (minus infinity: a coefficient of zero).
      value: the sum of squares.
      made: seeds that were descended. agreeing: how many ended within 0.01 % of it.
    """

    at: Array
    value: float
    made: int = 0
    agreeing: int = 0


class Projection:
    """One law over one table, by its exponents.

    Args:
      law: a sum of powers.
      table_KNP: `law.design` of the points.
      y: the response. weight: of the squares.
    """

    def __init__(self, law: Law, table_KNP: Array, y: Array, weight: Array) -> None:
        names = law.names
        self.coefficients = [names.index(each.coefficient) for each in law.terms]
        if len(set(self.coefficients)) < len(self.coefficients):
            raise ValueError("a coefficient stands in two terms: nothing to project")
        rest = [n for n in range(len(names)) if n not in self.coefficients]
        self.exponents = rest
        self.starts = [law.parameters[n].starts for n in rest]
        powers = table_KNP[:, :, rest]
        # Powers of columns over their means: coefficients of about the same size.
        self.middle_KQ = powers.mean(1)
        self.powers_KNQ = powers - self.middle_KQ[:, None]
        self.y, self.root, self.size = y, np.sqrt(weight), len(names)

    def solve(self, q: Array) -> tuple[float, Array, Array]:
        """Sum of squares, its gradient and the coefficients, at exponents ``q``."""
        basis_NK = np.exp(np.clip(self.powers_KNQ @ q, -150, 150)).T
        scale = np.linalg.norm(basis_NK * self.root[:, None], axis=0)
        solved, _ = nnls(basis_NK * self.root[:, None] / scale, self.y * self.root)
        coefficients = solved / scale
        far = basis_NK @ coefficients - self.y
        value = float(far**2 @ self.root**2)
        weighted = basis_NK * (far * self.root**2)[:, None] * coefficients
        return value, 2 * np.einsum("nk,knq->q", weighted, self.powers_KNQ), solved

    def coordinates(self, q: Array) -> Array:
        """All coordinates, those of the coefficients logarithms."""
        at = np.zeros(self.size)
        basis_NK = np.exp(np.clip(self.powers_KNQ @ q, -150, 150)).T
        basis_NK = basis_NK * self.root[:, None]
        scale = np.linalg.norm(basis_NK, axis=0)
        solved, _ = nnls(basis_NK / scale, self.y * self.root)
        with np.errstate(divide="ignore"):
            at[self.coefficients] = np.log(solved / scale) - self.middle_KQ @ q
        at[self.exponents] = q
        return at

    @functools.cached_property
    def seeds(self) -> list[Array]:
        """The best exponents of a grid, then the best of the law's own starts.

        The grid's are positive; an exponent that is negative (a share's) has a start
        that is, and no way leads there: at zero its term is a constant.
        """
        many = len(self.exponents)
        each = max(2, int(MOST ** (1 / max(many, 1))))
        grid = np.array(GRID)[np.linspace(0, len(GRID) - 1, min(each, 7)).astype(int)]
        own = [self.starts[place] for place in range(many)]
        return [*self._lowest([grid] * many), *self._lowest(own)]

    def _lowest(self, axes: Sequence[Sequence[float] | Array]) -> list[Array]:
        """The best of the combinations of some exponents."""
        every = itertools.islice(itertools.product(*axes), MOST)
        tried = [np.array(q) for q in every]
        scores = [self.solve(q)[0] for q in tried]
        return [tried[place] for place in np.argsort(scores)[:KEPT]]

    def best(self) -> Projected:
        """The least sum of squares over all exponents."""
        if not self.exponents:
            return Projected(self.coordinates(np.zeros(0)), self.solve(np.zeros(0))[0])
        scale = max(float((self.root * self.y) @ (self.root * self.y)), 1e-300)

        def both(q: Array) -> tuple[float, Array]:
            value, slope, _ = self.solve(q)
            return value / scale, slope / scale

        found = [_descended(both, seed) for seed in self.seeds]
        lowest = min(found, key=lambda each: each.fun)
        options = {"xatol": 1e-11, "fatol": 1e-16, "maxiter": 4000, "maxfev": 4000}
        last = minimize(
            lambda q: both(q)[0],
            lowest.x,
            method="Nelder-Mead",
            bounds=[BOUNDS] * len(lowest.x),
            options=options,
        )
        q = last.x if last.fun < lowest.fun else lowest.x
        value = self.solve(q)[0]
        limit = value / scale * (1 + 1e-4) + 1e-14
        agreeing = sum(each.fun <= limit for each in found)
        return Projected(self.coordinates(q), value, len(found), agreeing)


def _descended(both: Callable[[Array], tuple[float, Array]], seed: Array) -> Any:
    options = {"ftol": 1e-15, "gtol": 1e-13, "maxiter": 500}
    bounds = [BOUNDS] * len(seed)
    return minimize(
        both, seed, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
