"""Step-time spread: what the clock said of every timed step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.studies.markup import Markup, tag
from scaling_lab.studies.plain import having, known, rows_of
from scaling_lab.studies.plots import Figure, Slots, arrange, level_line
from scaling_lab.studies.svg import WIDTH, Axis, row_figure, words
from scaling_lab.studies.units import Unit

_MOST_DOTS = 200


def spread(
    frame: pd.DataFrame, slots: Slots, simulated: bool, steps: Mapping[str, list[float]]
) -> Figure | None:
    """Every timed step as a dot, the 5th to 95th percentile, the median.

    Args:
      steps: the seconds of every timed step, by run id.
    """
    timed = having(frame, "step_seconds")
    order = simulated and len(known(timed, "peak_bytes")) == len(timed)
    shown, rows, note = arrange(timed, "peak_bytes" if order else "step_seconds", slots)
    if shown.empty:
        return None
    records = rows_of(shown)
    unit = units.unit_for("seconds", known(shown, "step_seconds"))
    ends = [
        row[name] / unit.size
        for row in records
        for name in ("step_seconds", "step_seconds_p5", "step_seconds_p95")
        if row[name] is not None
    ]
    low, high = min(ends), max(ends)
    # One slow step must not squeeze all others: what lies beyond is counted instead.
    dots = [
        second / unit.size for row in records for second in steps.get(row["id"], [])
    ]
    high = max([high, *(dot for dot in dots if dot <= high * 1.08)])
    log = low > 0 and high / low > 20
    pad = 0 if log else (high - low or high or 1.0) * 0.04
    span = (max(low - pad, low / 2), high + pad)

    def draw(index: int, y: float, axis: Axis) -> str:
        row = records[index]
        seconds = steps.get(row["id"], [])
        return _spread_row(row, seconds, rows[index].slot, y, axis, unit)

    drawing = row_figure(
        rows,
        span,
        f"{unit.symbol} per step" + (" (simulated: do not rank)" * simulated),
        "Step-time spread, one line a run",
        draw,
        f"median, {unit.symbol}",
        margin=118.0,
        log=log,
    )
    return Figure(drawing, Markup(""), note, unit.symbol)


def _spread_row(
    row: Mapping[str, Any],
    seconds: Sequence[float],
    slot: str,
    y: float,
    axis: Axis,
    unit: Unit,
) -> Markup:
    """One line of the figure; steps beyond the axis are counted at its end."""
    marks = []
    stride = 1 + len(seconds) // _MOST_DOTS
    values = [second / unit.size for second in seconds]
    for index, value in enumerate(values[::stride]):
        if value <= axis.high:
            # Dots of like steps would hide each other: spread them over five heights.
            height = y + (index % 5 - 2) * 1.7
            x = axis.at(max(value, axis.low))
            marks.append(tag("circle", cx=x, cy=height, r=1.7, class_=f"step {slot}"))
    if row["step_seconds_p5"] is not None and row["step_seconds_p95"] is not None:
        left, right = (
            axis.at(row[name] / unit.size)
            for name in ("step_seconds_p5", "step_seconds_p95")
        )
        marks.append(level_line(left, right, y, f"range {slot}"))
    x = axis.at(row["step_seconds"] / unit.size)
    marks.append(tag("line", x1=x, x2=x, y1=y - 7, y2=y + 7, class_="median"))
    beyond = sum(value > axis.high for value in values)
    text = units.in_unit(row["step_seconds"], unit)
    marks.append(words(text, WIDTH - 4, y + 4, "value", "end"))
    if beyond:
        marks.append(words(f"{beyond} ▸", axis.stop + 5, y + 4, "beyond"))
    return tag("g", tag("title", _spread_words(row)), *marks)


def _spread_words(row: Mapping[str, Any]) -> str:
    low, middle, high = (
        units.human(row[name], "seconds")
        for name in ("step_seconds_p5", "step_seconds", "step_seconds_p95")
    )
    return f"median {middle}, 5th to 95th percentile {low} to {high}"
