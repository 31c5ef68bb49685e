"""Numbers for people: one unit a column, a dash for what is missing."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

import pandas as pd

MISSING = "–"
#: Two float32 runs that differ in layout only should end this close.
LOSS_TOLERANCE = 1e-4

_LADDERS: dict[str, tuple[tuple[str, float], ...]] = {
    "bytes": tuple(
        (name, 1024.0**power)
        for power, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    ),
    "seconds": (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)),
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """A symbol, how much one of it is, and the decimals shown."""

    symbol: str = ""
    size: float = 1.0
    decimals: int = 0


def unit_for(kind: str, values: Iterable[Any]) -> Unit:
    """The unit in which the typical value of a column reads easily."""
    known = [abs(float(value)) for value in values if not is_missing(value)]
    known = [value for value in known if value > 0]
    typical = statistics.median(known) if known else 0.0
    if kind == "fraction":
        return Unit("%", 0.01, 1)
    if kind == "number":
        return Unit("", 1.0, 4)
    if kind not in _LADDERS:
        return Unit("", 1.0, 0 if typical >= 100 or kind == "count" else 1)
    ladder = _LADDERS[kind]
    symbol, size = ladder[0]
    for name, amount in ladder:
        if typical >= amount:
            symbol, size = name, amount
    if symbol == "B":
        return Unit(symbol, size, 0)
    return Unit(symbol, size, 2 if typical / size < 10 else 1)


def in_unit(value: Any, unit: Unit) -> str:
    """A number in a column's unit, without the symbol; tiny is not shown as zero."""
    if is_missing(value):
        return MISSING
    scaled = float(value) / unit.size
    if scaled == 0:
        return "0"
    least = 10.0**-unit.decimals
    if 0 < scaled < least / 2:
        return f"<{least:.{unit.decimals}f}"
    return f"{scaled:,.{unit.decimals}f}"


def human(value: Any, kind: str) -> str:
    """One value on its own, with its unit."""
    if is_missing(value):
        return MISSING
    if kind == "flag":
        return "yes" if value else "no"
    if kind in ("text", "time"):
        return str(value)
    if kind == "number" and (abs(value) >= 1e5 or 0 < abs(value) < 1e-3):
        return f"{value:.3g}"
    unit = unit_for(kind, [value])
    return f"{in_unit(value, unit)} {unit.symbol}".rstrip()


def count(value: float) -> str:
    """A large count in three digits: ``33_600_000 -> "33.6M"``."""
    for symbol, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{symbol}"
    return f"{value:,.0f}"


def difference(value: Any, precision: Any, is_reference: bool = False) -> str:
    """A relative loss difference, marked where float32 lets us judge it."""
    if is_missing(value):
        return MISSING
    if is_reference:
        return "reference"
    text = "0" if value == 0 else f"{value:.0e}"
    agrees = agree(value, precision)
    return text if agrees is None else f"{text} {'✓' if agrees else '✗'}"


def agree(value: Any, precision: Any) -> bool | None:
    """Whether a relative difference is within tolerance; ``None`` if not judged.

    Only float32 is judged: in bfloat16 the order of a sum alone costs a percent.
    """
    if is_missing(value) or is_missing(precision) or precision != "float32":
        return None
    return bool(value <= LOSS_TOLERANCE)


def is_missing(value: Any) -> bool:
    """True for ``None``, ``pd.NA`` and numbers that are not finite."""
    if value is None or value is pd.NA:
        return True
    return isinstance(value, float) and not math.isfinite(value)
