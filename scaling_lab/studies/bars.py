"""Figures of bars: memory, collective bytes, throughput."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.studies.facts import axis_columns, axis_slot, axis_words
from scaling_lab.studies.markup import Markup, join, tag
from scaling_lab.studies.plain import having, known, rows_of
from scaling_lab.studies.plots import (
    Figure,
    Slots,
    arrange,
    key,
    level_line,
    stack,
    value_text,
)
from scaling_lab.studies.svg import Axis, row_figure
from scaling_lab.studies.units import Unit


def memory(frame: pd.DataFrame, slots: Slots) -> Figure | None:
    """Peak bytes per device: arguments, temporaries, and what else makes the peak."""
    shown, rows, note = arrange(frame, "peak_bytes", slots)
    if shown.empty:
        return None
    unit = units.unit_for("bytes", known(shown, "peak_bytes"))
    pieces = ["argument_bytes", "temporary_bytes"]
    extra = [
        name
        for name in ("predicted_peak_bytes", "measured_peak_bytes")
        if known(shown, name)
    ]
    records = rows_of(shown)
    top = max(
        float(row[name] or 0) for row in records for name in ("peak_bytes", *extra)
    )

    def draw(index: int, y: float, axis: Axis) -> str:
        row, slot = records[index], rows[index].slot
        parts = [
            (name, row[name] or 0, f"{kind} {slot}")
            for name, kind in zip(pieces, ("solid", "light"), strict=True)
        ]
        marks = [stack(parts, y, axis, unit), _peak(row["peak_bytes"], y, axis, unit)]
        marks += [_other_peak(row.get(name), y, axis, unit, name) for name in extra]
        return join(*marks, value_text(row["peak_bytes"], y, unit))

    drawing = row_figure(
        rows,
        (0, top / unit.size),
        f"{unit.symbol} per device",
        "Peak memory per device, one bar a run",
        draw,
        unit.symbol,
    )
    entries = [("solid ink", "arguments"), ("light ink", "temporaries")]
    entries += [("peak-stroke", "compiled peak")]
    entries += [(name.split("_")[0], f"{name.split('_')[0]} peak") for name in extra]
    return Figure(drawing, key(entries), note, unit.symbol)


def collectives(frame: pd.DataFrame, slots: Slots) -> Figure | None:
    """Bytes over the wires per device and step, by mesh axis."""
    shown, rows, note = arrange(frame, "collective_bytes", slots)
    if shown.empty or not any(known(shown, "collective_bytes")):
        return None
    unit = units.unit_for("bytes", known(shown, "collective_bytes"))
    names = axis_columns(frame)
    axes = [axis_words(name) for name in names]
    slot = {name: axis_slot(axis_words(name), axes) for name in names}
    records = rows_of(shown)

    def draw(index: int, y: float, axis: Axis) -> str:
        row = records[index]
        parts = [(name, row[name] or 0, f"solid {slot[name]}") for name in names]
        total = row["collective_bytes"]
        return join(stack(parts, y, axis, unit), value_text(total, y, unit))

    drawing = row_figure(
        rows,
        (0, float(max(known(shown, "collective_bytes"))) / unit.size),
        f"{unit.symbol} per device and step",
        "Collective bytes per device and step by mesh axis, one bar a run",
        draw,
        unit.symbol,
    )
    entries = [(f"solid {slot[name]}", axis_words(name)) for name in names]
    return Figure(drawing, key(entries), note, unit.symbol)


def throughput(frame: pd.DataFrame, slots: Slots, simulated: bool) -> Figure | None:
    """Tokens per second: sorted on real devices, hatched and unsorted on simulated."""
    # On simulated devices the order is that of memory, lest a ranking be read.
    by = "tokens_per_second"
    timed = having(frame, by)
    placed = simulated and len(known(timed, "peak_bytes")) == len(timed)
    order = "peak_bytes" if placed else by
    shown, rows, note = arrange(timed, order, slots, descending=order == by)
    if shown.empty:
        return None
    records = rows_of(shown)
    unit = units.unit_for("rate", known(shown, by))
    reach = [_rate_range(row) for row in records]
    top = max(
        max(row[by], high or 0) for row, (_, high) in zip(records, reach, strict=True)
    )

    def draw(index: int, y: float, axis: Axis) -> str:
        row, (low, high) = records[index], reach[index]
        kind = "hatched" if simulated else "solid"
        bar = stack([(by, row[by], f"{kind} {rows[index].slot}")], y, axis, unit)
        whisker = None
        if low is not None and high is not None:
            whisker = level_line(axis.at(low), axis.at(high), y, "whisker")
        return join(bar, whisker, value_text(row[by], y, unit))

    drawing = row_figure(
        rows,
        (0, top),
        "tokens per second, all devices" + (" (simulated: do not rank)" * simulated),
        "Throughput, one bar a run",
        draw,
        "tokens/s",
    )
    return Figure(drawing, Markup(""), note, "tokens per second")


def _rate_range(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    tokens, fast, slow = (
        row[name] for name in ("tokens_per_step", "step_seconds_p5", "step_seconds_p95")
    )
    return (tokens / slow, tokens / fast) if tokens and fast and slow else (None, None)


def _peak(amount: float, y: float, axis: Axis, unit: Unit) -> Markup:
    """A stroke across the bar where the compiler puts the peak."""
    x = axis.at(float(amount) / unit.size)
    return tag("line", x1=x, x2=x, y1=y - 7.5, y2=y + 7.5, class_="peak")


def _other_peak(
    amount: float | None, y: float, axis: Axis, unit: Unit, name: str
) -> Markup | None:
    """A diamond for the predicted peak, a ring for the measured one."""
    if amount is None:
        return None
    x = axis.at(float(amount) / unit.size)
    title = tag("title", f"{name}: {units.human(amount, 'bytes')}")
    if name.startswith("measured"):
        return tag("circle", title, cx=x, cy=y, r=3.6, class_="mark")
    path = f"M{x - 4.4:.1f} {y:.1f}l4.4 -4.4 4.4 4.4-4.4 4.4z"
    return tag("path", title, d=path, class_="mark")
