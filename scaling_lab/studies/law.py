"""What a scaling law is: a formula, its parameters, the columns it needs.

Two kinds of curve. A sum of powers is declared, term by term; its logarithm is a
log-sum-exp that is linear inside, so gradients and both solvers follow from the
declaration. Anything else gives its logarithm with derivatives itself.

Fits work on *coordinates*: a positive parameter's logarithm, any other as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Columns = Mapping[str, Array]
#: Coordinates (a batch, one a parameter) and columns (one a point) -> the curve's
#: logarithm (batch, point) and its derivative (batch, point, parameter).
LogCurve = Callable[[Array, Columns], tuple[Array, Array]]

#: Columns that laws may need, with what they hold.
ROLES = {
    "n": "parameters",
    "d": "training tokens",
    "c": "training FLOPs",
    "loss": "loss",
    "unique": "unique tokens",
    "width": "model width",
    "depth": "layers",
    "experts": "experts",
    "granularity": "granularity of experts",
    "active": "active share of the parameters",
    "bits": "bits of weights, activations and keys in training",
    "ratio": "tokens per parameter",
    "rate": "learning rate",
    "batch": "tokens per step",
    "x": "variable",
    "judged": "loss by which rates and batches are judged",
    "y": "response",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
      name: as in the formula.
      meaning: a few words.
      positive: fitted as its logarithm, and never negative.
      starts: values that searches begin from, combined with those of the others.
    """

    name: str
    meaning: str
    positive: bool = False
    starts: tuple[float, ...] = (0.1, 0.3, 0.6)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Published constants.

    Attributes:
      values: by parameter.
      source: paper, section; arXiv number.
      checked: ``read`` in the source or refitted from its data, or ``secondary``: taken
        from somebody's notes on it.
      note: what else has to be known to use them.
    """

    values: Mapping[str, float]
    source: str
    checked: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Term:
    """``coefficient * column^(sign * exponent) * …``; no columns: a constant.

    Attributes:
      coefficient: a positive parameter.
      powers: (column, sign, exponent's parameter).
    """

    coefficient: str
    powers: tuple[tuple[str, float, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Path:
    """Where compute is best spent: ``N* = n_scale C^a`` and ``D* = d_scale C^b``."""

    a: float
    b: float
    n_scale: float
    d_scale: float


@dataclasses.dataclass(frozen=True)
class Law:
    """A law.

    Attributes:
      title: what it is called.
      formula: in the letters of `parameters` and `needs`.
      parameters: in order.
      needs: the columns, by role.
      references: published constants by name.
      terms: the sum of powers; or
      curve: the curve, where it is none; or
      procedure: how it is fitted, where it is no curve at all.
      response: the role of what is predicted.
      loss, delta: what is minimised unless asked otherwise.
      path: where compute is best spent, from the values.
      prepare: makes further columns out of those of the table.
    """

    title: str
    formula: str
    parameters: tuple[Parameter, ...]
    needs: tuple[str, ...]
    references: Mapping[str, Reference]
    terms: tuple[Term, ...] = ()
    curve: LogCurve | None = None
    procedure: Callable[[Any, Any], Any] | None = None
    response: str = "loss"
    loss: str = "huber"
    delta: float = 1e-3
    path: Callable[[Mapping[str, float]], Path] | None = None
    prepare: Callable[[Any], Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names in order."""
        return tuple(each.name for each in self.parameters)

    def coordinates(self, values: Mapping[str, float]) -> Array:
        """Values to coordinates; a positive parameter's zero becomes minus infinity."""
        with np.errstate(divide="ignore"):
            return np.array(
                [
                    np.log(values[each.name]) if each.positive else values[each.name]
                    for each in self.parameters
                ]
            )

    def values(self, coordinates: Array) -> dict[str, float]:
        """Coordinates to values by name."""
        with np.errstate(over="ignore"):
            return {
                each.name: float(np.exp(at) if each.positive else at)
                for each, at in zip(self.parameters, coordinates, strict=True)
            }

    def best_path(self, values: Mapping[str, float]) -> Path | None:
        """Where compute is best spent; None where the law or the values say nowhere."""
        if self.path is None:
            return None
        try:
            found = self.path(values)
        except (ArithmeticError, ValueError):
            return None
        parts = (found.a, found.b, found.n_scale, found.d_scale)
        # With a negative exponent nowhere is best: complex numbers, or shares past 1.
        if any(isinstance(p, complex) or not np.isfinite(p) or p <= 0 for p in parts):
            return None
        return found if max(parts[:2]) < 1 else None

    def on(self, columns: Columns) -> LogModel:
        """The curve over the points of a table."""
        if self.curve is not None:
            return Curved(self.curve, columns)
        return Summed(design(self, columns))

    def predict(self, values: Mapping[str, float], columns: Columns) -> Array:
        """The law's value at every point, for given constants."""
        columns = {name: np.atleast_1d(np.float64(x)) for name, x in columns.items()}
        at = self.coordinates(values)[None]
        return np.exp(self.on(columns).log_values(at)[0][0])


def design(law: Law, columns: Columns) -> Array:
    """Derivatives of the logarithm of every term: (term, point, parameter)."""
    names = law.names
    points = len(next(iter(columns.values())))
    table = np.zeros((len(law.terms), points, len(names)))
    for index, term in enumerate(law.terms):
        table[index, :, names.index(term.coefficient)] = 1.0
        for column, sign, exponent in term.powers:
            table[index, :, names.index(exponent)] += sign * np.log(columns[column])
    return table


class LogModel(Protocol):
    """The logarithm of a law over the points of a table, for a batch of coordinates."""

    def log_values(self, at_BP: Array) -> tuple[Array, Any]:
        """The logarithms (batch, point), and what `pull` wants to see again."""
        ...

    def pull(self, state: Any, weights_BN: Array) -> Array:
        """Sums of the derivatives over points, weighted: (batch, parameter)."""
        ...

    def jacobian(self, state: Any) -> Array:
        """The derivatives: (batch, point, parameter)."""
        ...


class Summed:
    """A sum of powers: log-sum-exp of what is linear in the coordinates."""

    def __init__(self, table_KNP: Array) -> None:
        self.table_KNP = table_KNP

    def log_values(self, at_BP: Array) -> tuple[Array, Array]:
        terms, points, size = self.table_KNP.shape
        flat = self.table_KNP.reshape(terms * points, size)
        inside = (at_BP @ flat.T).reshape(len(at_BP), terms, points)
        top = inside.max(1, keepdims=True)
        np.subtract(inside, top, out=inside)
        share = np.exp(inside, out=inside)
        total = share.sum(1, keepdims=True)
        np.divide(share, total, out=share)
        return (np.log(total) + top)[:, 0], share

    def pull(self, state: Array, weights_BN: Array) -> Array:
        terms, points, size = self.table_KNP.shape
        flat = self.table_KNP.reshape(terms * points, size)
        weighted = state * weights_BN[:, None]
        return weighted.reshape(len(weights_BN), -1) @ flat

    def jacobian(self, state: Array) -> Array:
        return np.einsum("bkn,knp->bnp", state, self.table_KNP, optimize=True)


class Curved:
    """A curve that brings its own derivatives."""

    def __init__(self, curve: LogCurve, columns: Columns) -> None:
        self.curve, self.columns = curve, columns

    def log_values(self, at_BP: Array) -> tuple[Array, Array]:
        return self.curve(at_BP, self.columns)

    def pull(self, state: Array, weights_BN: Array) -> Array:
        return np.einsum("bnp,bn->bp", state, weights_BN, optimize=True)

    def jacobian(self, state: Array) -> Array:
        return state
