"""What a fit found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling_lab.studies.fitting.objective import Objective
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.profiles import Profile
from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.fitting.uncertainty import Direction
from scaling_lab.studies.law import Array, Law, Path

#: Beyond this many e-folds from its best value a parameter has no end.
ENDLESS = 14.0
#: Of the bootstrap's refits, how many a fit hands on.
DRAWS = 400


@dataclasses.dataclass(frozen=True)
class Optimum:
    """Where one budget is best spent; ``loss`` may be unknown."""

    flops: float
    params: float
    tokens: float
    loss: float | None
    points: int = 0
    inside: bool = True


@dataclasses.dataclass(frozen=True)
class Heldout:
    """Relative errors on points that a fit has not seen, those of most compute."""

    points: int
    by: str
    above: float
    mean: float
    worst: float
    bias: float


@dataclasses.dataclass(frozen=True)
class Moved:
    """What one point does: a parameter's value without it, and by how many errors."""

    row: int
    parameter: str
    value: float
    errors: float
    path_a: float | None


@dataclasses.dataclass(frozen=True)
class Curve:
    """Of a law that is a curve: how it was fitted and how firm it stands."""

    law: Law
    values: Mapping[str, float]
    fixed: Mapping[str, float]
    predicted: Array
    objective: Objective
    condition: float
    flat: list[Direction]
    profiles: Mapping[str, Profile]
    refits: Array | None
    moved: list[Moved]
    starts: tuple[int, int]
    references: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Parabola:
    """One budget's parabola: ``loss = low + bend (log n - log n_best)²``."""

    flops: float
    places: Array
    n_best: float
    d_best: float
    low: float
    bend: float
    inside: bool
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit.

    Attributes:
      law: its name. parameters: by name.
      path: where compute is best spent, if the law says so.
      path_refits: the same of the refits: (fit, (a, b)).
      objective: what was minimised, at the minimum.
      optima: by budget. held_out: the extrapolation's error.
      curve: of a law that is one; parabolas: of isoFLOP fits.
    """

    law: str
    parameters: dict[str, float]
    path: Path | None
    interval: float
    optima: list[Optimum]
    points: Points
    objective: float
    held_out: Heldout | None
    warnings: list[str]
    options: Options
    curve: Curve | None = None
    parabolas: tuple[Parabola, ...] = ()
    path_refits: Array | None = None
    words: str = ""

    def predict(self, **columns: Any) -> Array:
        """The law at other places: ``fit.predict(n=7e9, d=2e12)``.

        Raises:
          ValueError: this law is no curve, or a column is missing.
        """
        if self.curve is None:
            raise ValueError(f"{self.law} predicts optima, not losses: see `optima`")
        given = {name: np.atleast_1d(np.float64(x)) for name, x in columns.items()}
        if "n" in given and "d" in given:
            given.setdefault("c", 6 * given["n"] * given["d"])
            given.setdefault("ratio", given["d"] / given["n"])
        lacking = [role for role in self.curve.law.needs if role not in given]
        if lacking:
            raise ValueError(f"{self.law} needs {', '.join(lacking)} too")
        return self.curve.law.predict(self.parameters, given)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The bootstrap's interval of every parameter that moved."""
        if self.curve is None or self.curve.refits is None:
            return self._path_ranges()
        law, found = self.curve.law, {}
        for place, parameter in enumerate(law.parameters):
            if parameter.name in self.curve.fixed:
                continue
            low, high = self._between(self.curve.refits[:, place])
            if parameter.positive:
                best = math.log(self.parameters[parameter.name])
                low = 0.0 if low < best - ENDLESS else math.exp(low)
                high = math.inf if high > best + ENDLESS else math.exp(min(high, 700))
            found[parameter.name] = (low, high)
        return found

    def _path_ranges(self) -> dict[str, tuple[float, float]]:
        return {
            name: r for name in ("a", "b") if (r := self.exponent(name)) is not None
        }

    def exponent(self, name: str) -> tuple[float, float] | None:
        """The interval of ``a`` or ``b`` of the path."""
        both = self.exponents()
        if both is None:
            return None
        return self._between(both[:, ("a", "b").index(name)])

    def exponents(self) -> Array | None:
        """(a, b) of every refit."""
        if self.path_refits is not None:
            return self.path_refits
        if self.curve is None or self.curve.refits is None or self.path is None:
            return None
        law = self.curve.law
        paths = [law.best_path(law.values(row)) for row in self.curve.refits]
        found = [(each.a, each.b) for each in paths if each is not None]
        return np.array(found) if found else None

    def draws(self) -> dict[str, list[float]] | None:
        """Constants of the bootstrap's refits by name, for whoever carries them on."""
        if self.curve is None or self.curve.refits is None:
            return None
        rows = [self.curve.law.values(row) for row in self.curve.refits[:DRAWS]]
        return {
            name: [float(f"{row[name]:.6g}") for row in rows]
            for name in self.parameters
        }

    def _between(self, values: Array) -> tuple[float, float]:
        tail = (1 - self.interval) / 2
        low, high = np.quantile(values, (tail, 1 - tail))
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Plain data, numbers that are not finite as None."""
        from scaling_lab.studies.fitting.words import as_json

        return as_json(self)

    def figure(self) -> str:
        """The fit in pictures: one SVG that stands alone."""
        from scaling_lab.studies.fitting.figure import figure

        return figure(self)

    def report(self) -> str:
        """The text and the pictures as one HTML page that needs nothing else."""
        from scaling_lab.studies.fitting.page import page

        return page(self)

    def _repr_svg_(self) -> str:
        return self.figure()

    def __str__(self) -> str:
        from scaling_lab.studies.fitting.words import as_text

        return as_text(self)
