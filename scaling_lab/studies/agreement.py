"""Where a run has a quantity at two levels: predicted, compiled, measured in pairs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import scaling_lab.studies.units as units
from scaling_lab.record import RunRecord
from scaling_lab.studies.rows import dig, simulated_run

#: Pairs of levels, each one panel: across, and upwards.
PANELS = (
    ("predicted", "compiled"),
    ("predicted", "measured"),
    ("compiled", "measured"),
)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What several levels say of a run.

    Attributes:
      name: of the quantity, with its unit; kind: as of a column. title: for people.
      paths: where each level holds it; the first that is there counts.
      interval: paths of the ends between which a prediction puts the truth.
      is_speed: simulated devices measure one that means nothing elsewhere.
    """

    name: str
    kind: str
    title: str
    paths: Mapping[str, tuple[str, ...]]
    interval: tuple[str, str] | None = None
    is_speed: bool = False


QUANTITIES = (
    Quantity(
        "step_seconds",
        "seconds",
        "Seconds of a step",
        {
            "predicted": ("predicted.step_seconds",),
            "compiled": ("compiled.step_seconds",),
            "measured": ("measured.step_seconds.median",),
        },
        ("predicted.step_seconds_low", "predicted.step_seconds_high"),
        is_speed=True,
    ),
    Quantity(
        "peak_bytes",
        "bytes",
        "Peak bytes of a device",
        {
            "predicted": ("predicted.hbm_bytes",),
            "compiled": ("compiled.needed_bytes", "compiled.peak_bytes"),
            "measured": ("measured.peak_bytes",),
        },
    ),
    Quantity(
        "collective_bytes",
        "bytes",
        "Collective bytes of a device and step",
        {
            "predicted": ("predicted.collective_bytes",),
            "compiled": ("compiled.collectives", "compiled.by_axis"),
        },
    ),
)


def agreement(
    runs: Sequence[RunRecord], point: Callable[[int], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every quantity that some run has at two levels, with its panels, as plain data.

    Args:
      point: what a run's points carry besides numbers, by the run's place.
    """
    found = []
    for quantity in QUANTITIES:
        values = [_levels(run, quantity) for run in runs]
        known = [value for each in values for value in each.values()]
        unit = units.unit_for(quantity.kind, known)
        panels = [
            _panel(across, upwards, quantity, unit, runs, values, point)
            for across, upwards in PANELS
        ]
        panels = [panel for panel in panels if panel["points"]]
        if panels:
            found.append(
                {
                    "name": quantity.name,
                    "title": quantity.title,
                    "unit": unit.symbol,
                    "panels": panels,
                }
            )
    return found


def _levels(run: RunRecord, quantity: Quantity) -> dict[str, float]:
    """The numbers above zero that a run has, by level; a logarithm has no other."""
    found = {}
    for level, paths in quantity.paths.items():
        if level == "measured" and quantity.is_speed and simulated_run(run):
            continue
        numbers = [
            number for number in (_number(run, path) for path in paths) if number
        ]
        if numbers:
            found[level] = numbers[0]
    return found


def _number(run: RunRecord, path: str) -> float | None:
    value = dig(run, path)
    if isinstance(value, list):  # collectives, one by one
        value = _sum(value, "bytes")
    elif isinstance(value, Mapping):  # by mesh axis
        value = _sum(list(value.values()), "collective_bytes")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < float("inf") else None


def _sum(entries: Sequence[Any], name: str) -> float | None:
    """A sum of which no summand is unknown."""
    total = 0.0
    for each in entries:
        part = each.get(name) if isinstance(each, Mapping) else None
        if isinstance(part, bool) or not isinstance(part, (int, float)):
            return None
        total += part
    return total


def _panel(
    across: str,
    upwards: str,
    quantity: Quantity,
    unit: units.Unit,
    runs: Sequence[RunRecord],
    values: Sequence[Mapping[str, float]],
    point: Callable[[int], Mapping[str, Any]],
) -> dict[str, Any]:
    points = []
    for place, (run, levels) in enumerate(zip(runs, values, strict=True)):
        if across not in levels or upwards not in levels:
            continue
        x, y = levels[across] / unit.size, levels[upwards] / unit.size
        ends = [None, None]
        if across == "predicted" and quantity.interval:
            ends = [_number(run, path) for path in quantity.interval]
        low, high = (None if end is None else end / unit.size for end in ends)
        points.append({**point(place), "x": x, "y": y, "low": low, "high": high})
    return {"x": across, "y": upwards, "points": points, "band": _band(points)}


def _band(points: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The median interval of these points, as factors of what was predicted."""
    told = [each for each in points if each["low"] and each["high"]]
    if not told:
        return None
    return [
        statistics.median(each[end] / each["x"] for each in told)
        for end in ("low", "high")
    ]
