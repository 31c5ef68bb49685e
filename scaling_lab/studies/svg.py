"""A small vocabulary for figures: axes, ticks, labelled rows. Plain SVG, no library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from scaling_lab.studies.markup import Markup, join, tag

WIDTH = 760.0
ROW = 19.0
BAR = 11.0
#: The mean advance of a character at the figures' 11.5 px.
CHARACTER = 6.1
_LONGEST_LABEL = 46


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``stop``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, kept inside the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.log10(self.high)
            powers = range(first, math.floor(last + 1e-9) + 1)
            return [10.0**power for power in powers[:: 1 + len(powers) // (most + 2)]]
        step = round_step(self.high - self.low, most)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + index) * step for index in range(count)]


def round_step(extent: float, most: int) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^n that cuts an extent into few enough parts."""
    least = max(extent, 1e-300) / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(
        factor * power
        for factor in (1, 2, 2.5, 5, 10)
        if factor * power >= least * 0.999
    )


def tick_text(value: float, step: float) -> str:
    """A tick with the decimals its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    if step and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return f"{value:,.{decimals}f}"


def words(
    text: str, x: float, y: float, kind: str = "", anchor: str | None = None
) -> Markup:
    """A line of text."""
    return tag("text", text, x=x, y=y, class_=kind or None, text_anchor=anchor)


def clip(text: str, most: int = _LONGEST_LABEL) -> str:
    """A text short enough for its place; the whole one belongs into a title."""
    return text if len(text) <= most else text[: most - 1] + "…"


def canvas(
    width: float, height: float, description: str, *content: str | None
) -> Markup:
    """The drawing: scales with its place, never wider than it is drawn."""
    return tag(
        "svg",
        tag("title", description),
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One labelled line of a figure.

    Attributes:
      label: what stands left of it.
      group: the heading it stands under; equal neighbours share one.
      slot: its layout's colour class.
      run: the page's address of its run.
    """

    label: str
    group: str = ""
    slot: str = ""
    run: str | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """The left side of a figure of rows, and where each row is drawn."""

    rows: Sequence[Row]
    gutter: float
    middles: Sequence[float]
    bottom: float
    furniture: Markup


def place_rows(rows: Sequence[Row]) -> Rows:
    """Lays rows under one another, with their headings and labels."""
    longest = max((len(clip(row.label)) for row in rows), default=0)
    gutter = 26 + CHARACTER * max(longest, 8)
    y, heading, middles, drawn = 4.0, "", [], []
    for row in rows:
        if row.group and row.group != heading:
            heading = row.group
            y += 8 if middles else 0
            drawn.append(words(clip(heading, 110), 0, y + 13, "group"))
            y += 22
        middle = y + ROW / 2
        swatch = tag(
            "rect",
            x=0,
            y=middle - 4,
            width=8,
            height=8,
            rx=1.5,
            class_=f"solid {row.slot}",
        )
        label = words(clip(row.label), 14, middle + 4, "label")
        title = tag("title", row.label)
        drawn.append(tag("g", title, swatch, label, data_run=row.run))
        middles.append(middle)
        y += ROW
    return Rows(rows, gutter, middles, y + 2, join(*drawn))


def value_axis(axis: Axis, bottom: float, title: str, top: float = 2) -> Markup:
    """Grid lines, tick labels and what is counted, under the rows."""
    ticks = axis.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) if ticks else 1.0
    drawn = []
    for tick in ticks:
        x = axis.at(tick)
        text = f"{tick:g}" if axis.log else tick_text(tick, step)
        kind = "zero" if tick == 0 else "grid"
        drawn.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=kind))
        drawn.append(words(text, x, bottom + 14, "tick", "middle"))
    middle = (axis.start + axis.stop) / 2
    drawn.append(words(title, middle, bottom + 31, "axis", "middle"))
    return tag("g", *drawn)


def row_figure(
    rows: Sequence[Row],
    span: tuple[float, float],
    title: str,
    description: str,
    draw: Callable[[int, float, Axis], str],
    counted: str,
    margin: float = 78.0,
    log: bool = False,
) -> Markup:
    """A figure of labelled rows over one value axis.

    Args:
      span: lowest and highest value of the axis.
      draw: gives the marks of a row from its index, its middle and the axis.
      counted: what the numbers at the right end are.
      margin: pixels kept free right of the axis, for what `draw` writes there.
    """
    placed = place_rows(rows)
    axis = Axis(*span, placed.gutter, WIDTH - margin, log)
    marks = [
        tag("g", draw(index, y, axis), data_run=row.run)
        for index, (row, y) in enumerate(zip(rows, placed.middles, strict=True))
    ]
    return canvas(
        WIDTH,
        placed.bottom + 38,
        description,
        value_axis(axis, placed.bottom, title),
        words(counted, WIDTH - 4, placed.bottom + 14, "tick", "end"),
        placed.furniture,
        *marks,
    )
