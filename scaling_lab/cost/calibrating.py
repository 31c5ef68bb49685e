"""Efficiencies from a table of published runs or from one's own records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from scaling_lab import record
from scaling_lab.config import RunConfig
from scaling_lab.cost import calibrations
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.fit import Fit, fit, half_width, held_out
from scaling_lab.cost.points import Points
from scaling_lab.cost.published import read_rows
from scaling_lab.cost.runs import points_of
from scaling_lab.cost.tables import read_table
from scaling_lab.hardware import chip_for

#: How much further than between published runs one's own efficiencies may go.
_OWN = 3.0
#: Parts that rows of one source are left out in.
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A fit, its interval, the names of its rows, and what they are.

    Attributes:
      chips: those that the rows speak of alone; none where they speak of all.
    """

    fit: Fit
    half_width: float
    rows: list[str]
    what: str
    chips: tuple[str, ...] = ()


def repository(source: str) -> str:
    """Where a published row comes from: its source before a space or ``@``."""
    return source.replace("@", " ").partition(" ")[0]


def from_table(path: str | Path, start: Calibration | None = None) -> Calibrated:
    """Fits a table in the columns of the published runs.

    Rows without a positive ``step_seconds`` are left out.

    Raises:
      ValueError: no row can be read, or none has a step time.
    """
    table = read_table(path)
    if "step_seconds" not in table.columns:
        raise ValueError(f"{path} has no column step_seconds: nothing to fit to")
    clock = np.asarray(pd.to_numeric(table["step_seconds"], errors="coerce"), float)
    table = table.iloc[np.flatnonzero(clock > 0)].reset_index(drop=True)
    rows = read_rows(table)
    if rows.points is None:
        raise ValueError(
            f"no row of {path} can be read: {[*rows.reasons, 'no step time'][0]}"
        )
    table = table.iloc[rows.index]
    blank = [""] * len(table)
    sources = np.array([repository(str(x)) for x in table.get("source", blank)])
    seconds = np.asarray(table["step_seconds"], float)
    found = fit(rows.points, seconds, sources, start)
    groups = sources if len(set(sources)) > 1 else np.arange(len(seconds)) % _FOLDS
    left = held_out(rows.points, seconds, groups, start, sources=sources)
    width = half_width(rows.points, seconds, left, sources)
    names = [str(name) for name in table.get("run", rows.index)]
    return Calibrated(found, width, names, f"{len(set(sources))} sources")


def from_records(path: str | Path, start: Calibration | None = None) -> Calibrated:
    """Fits the finished, measured records of a folder, for the chips they ran on.

    Every other chip keeps the efficiencies of ``start`` (the lab's own by default): a
    CPU's launches say nothing of a GPU's. Records that were imported, and so lack a
    config of ours, are left out.

    Raises:
      ValueError: none has a measured step time, or none says its config.
    """
    timed = [r for r in record.read(path) if seconds_of(r) is not None]
    if not timed:
        raise ValueError(f"no record of {path} has a measured step time")
    kept = [r for r in timed if r.asked.get("config")]
    if not kept:
        raise ValueError(
            f"the {len(timed)} timed records of {path} were imported and do not say "
            "their whole config; calibrate on the table they came from, a .csv"
        )
    seconds = np.array([seconds_of(r) for r in kept], float)
    points, start = points_of_records(kept), start or calibrations.frozen()
    chips = tuple(sorted({str(chip) for chip in points.chip}))
    near = start.on(chips)
    found = fit(points, seconds, start=near, tight=_OWN)
    width = near.half_width
    if len(kept) > 1:
        folds = np.arange(len(kept)) % min(_FOLDS, len(kept))
        width = half_width(
            points, seconds, held_out(points, seconds, folds, near, _OWN)
        )
    moved = found.calibration.logs
    own = {c: Calibration(start.on([c]).logs | moved, width) for c in chips}
    whole = Calibration(start.logs, start.half_width, own=start.own | own)
    found = dataclasses.replace(found, calibration=whole)
    return Calibrated(found, width, [r.id for r in kept], "measured here", chips)


def points_of_records(records: list[record.RunRecord]) -> Points:
    """Points of records, each on the chip that it was measured on."""
    parts = []
    for row in records:
        kind = row.provenance.get("host", {}).get("device_kind", "")
        config = RunConfig.from_json(row.asked["config"])
        parts.append(points_of([config], chip_for(kind)))
    return Points.concat(parts)


def seconds_of(row: record.RunRecord) -> float | None:
    """A record's median step, or ``None`` where nothing was measured."""
    clock = (row.measured or {}).get("step_seconds")
    if row.status != "ok" or not clock:
        return None
    return clock["median"]
