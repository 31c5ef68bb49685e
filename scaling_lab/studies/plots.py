"""What the figures of rows share: which rows, their colours, their marks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.studies.facts import (
    HEADED,
    axis_words,
    labels,
    varying,
)
from scaling_lab.studies.markup import Markup, anchor, join, tag
from scaling_lab.studies.plain import cells_of, having
from scaling_lab.studies.svg import BAR, WIDTH, Axis, Row, words
from scaling_lab.studies.units import Unit

MOST_ROWS = 40
_COLOURS = 9


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing, its key, and what a caption has to say of the rows shown."""

    drawing: Markup
    key: Markup
    note: str
    unit: str


Slots = Mapping[str, str]


def layout_slots(frame: pd.DataFrame) -> dict[str, str]:
    """A colour class for every layout, in the order met; after nine they repeat."""
    layouts = dict.fromkeys(layout or "" for layout in cells_of(frame, "layout"))
    return {name: f"layout-{index % _COLOURS}" for index, name in enumerate(layouts)}


def key(
    entries: Sequence[tuple[str, str]], runs: Sequence[str | None] | None = None
) -> Markup:
    """Swatches with names; an entry is (classes, name), and may be a run's."""
    runs = runs or [None] * len(entries)
    items = [
        tag("li", tag("i", class_=f"swatch {kind}"), name, data_run=run)
        for (kind, name), run in zip(entries, runs, strict=True)
    ]
    return tag("ul", *items, class_="key")


def arrange(
    frame: pd.DataFrame, by: str, slots: Slots, descending: bool = False
) -> tuple[pd.DataFrame, list[Row], str]:
    """Rows that have a value, under headings, sorted by it within each, and a note.

    Headings say what was asked apart from the layout; where they would be about as
    many as the rows, it goes into the labels instead.
    """
    found = having(frame, by)
    told = varying(found) if len(found) else ["layout"]
    heads = [name for name in told if name in HEADED]
    groups = labels(found, heads) if heads else [""] * len(found)
    if heads and len(set(groups)) * 2 > len(found):
        heads, groups = [], [""] * len(found)
    many = len(set(groups))
    kept = max(1, MOST_ROWS // max(many, 1))
    values = cells_of(found, by)
    order: list[int] = []
    for group in dict.fromkeys(groups):
        members = [place for place, each in enumerate(groups) if each == group]
        members.sort(key=lambda place: -values[place] if descending else values[place])
        order += members[:kept]
    shown = found.iloc[order[:MOST_ROWS]]
    names = [name for name in told if name not in heads]
    rows = [
        Row(label, heading, slots.get(layout, ""), anchor(id))
        for label, heading, layout, id in zip(
            labels(shown, names),
            [groups[place] for place in order[:MOST_ROWS]],
            [layout or "" for layout in cells_of(shown, "layout")],
            cells_of(shown, "id"),
            strict=True,
        )
    ]
    end = "highest" if descending else "lowest"
    note = ""
    if len(shown) < len(found):
        what = f"the {kept} {end} of each group," if many > 1 else f"the {end}"
        note = (
            f"Shown: {what} {len(shown)} of {len(found)} runs; the table has them all."
        )
    return shown, rows, note


def stack(
    parts: Sequence[tuple[str, float, str]], y: float, axis: Axis, unit: Unit
) -> Markup:
    """A stacked bar from (column, amount, classes)."""
    bars, total = [], 0.0
    for name, amount, kind in parts:
        start, total = total, total + float(amount) / unit.size
        left, right = axis.at(start), axis.at(total)
        if right <= left:
            continue
        words_ = f"{axis_words(name).replace('_', ' ')}: {units.in_unit(amount, unit)}"
        bars.append(
            tag(
                "rect",
                tag("title", f"{words_} {unit.symbol}"),
                x=left,
                y=y - BAR / 2,
                width=right - left,
                height=BAR,
                class_=kind,
            )
        )
    return join(*bars)


def value_text(amount: float, y: float, unit: Unit) -> Markup:
    """The number at the right end of a row."""
    return words(units.in_unit(amount, unit), WIDTH - 4, y + 4, "value", "end")


def level_line(x1: float, x2: float, y: float, kind: str) -> Markup:
    """A horizontal stroke at the height of a row."""
    return tag("line", x1=x1, x2=x2, y1=y, y2=y, class_=kind)
