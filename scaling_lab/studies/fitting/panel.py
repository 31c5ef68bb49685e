"""Small plots for a sheet of several: dots, lines, two axes. Plain SVG, no library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from scaling_lab.studies.law import Array
from scaling_lab.studies.markup import Markup, tag
from scaling_lab.studies.svg import Axis, round_step, tick_text, words

WIDTH, HEIGHT = 392.0, 272.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 12.0, 30.0, 40.0
INK, BLUE, RED, GREY = "#1c1f24", "#3b6fb6", "#c4483f", "#9aa0a8"
#: From little to much, told apart without colour vision by their lightness.
SCALE = ("#30276b", "#3a5a98", "#2f8097", "#35a37a", "#86be4f", "#d9b93b")

STYLE = (
    "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#3a3f47}"
    "text.title{font-size:12.5px;font-weight:600;fill:#1c1f24}"
    "line.grid{stroke:#e7e8ea;stroke-width:1}line.edge{stroke:#b7bbc2;stroke-width:1}"
)


@dataclasses.dataclass(frozen=True)
class Dots:
    """Points; ``names`` show when one rests on them."""

    x: Sequence[float] | Array
    y: Sequence[float] | Array
    colour: str = BLUE
    size: float = 2.4
    names: Sequence[str] = ()
    hollow: bool = False
    opacity: float = 0.85


@dataclasses.dataclass(frozen=True)
class Line:
    """Points joined; ``fit`` lines do not widen the axes."""

    x: Sequence[float] | Array
    y: Sequence[float] | Array
    colour: str = INK
    dash: str | None = None
    width: float = 1.4
    fit: bool = True


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    x_name: str
    y_name: str
    marks: Sequence[Dots | Line]
    log_x: bool = False
    log_y: bool = False


def colour_at(share: float) -> str:
    """The colour of a place between the least (0) and the most (1)."""
    return SCALE[round(min(max(share, 0.0), 1.0) * (len(SCALE) - 1))]


def sheet(panels: Sequence[Panel], title: str, notes: Sequence[str]) -> Markup:
    """Panels two in a row under a title, as one SVG that stands alone."""
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    width, top = columns * WIDTH, 30 + 15.0 * len(notes)
    height = top + rows * HEIGHT
    drawn = []
    for place, panel in enumerate(panels):
        x, y = place % columns * WIDTH, top + place // columns * HEIGHT
        drawn.append(tag("g", draw(panel), transform=f"translate({x:g} {y:g})"))
    return tag(
        "svg",
        tag("title", title),
        tag("style", STYLE),
        tag("rect", width=width, height=height, fill="#fff"),
        words(title, 12, 20, "title"),
        *(words(note, 12, 36 + 15 * n) for n, note in enumerate(notes)),
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
    )


def draw(panel: Panel) -> Markup:
    """One plot at the origin."""
    x = _axis(panel, "x", _LEFT, WIDTH - _RIGHT)
    y = _axis(panel, "y", HEIGHT - _BOTTOM, _TOP)
    marks = [mark for each in panel.marks for mark in _drawn(each, x, y)]
    middle = (x.start + x.stop) / 2
    return tag(
        "g",
        words(panel.title, _LEFT - 44, 16, "title"),
        *_grid(x, y),
        *marks,
        words(panel.x_name, middle, HEIGHT - 8, anchor="middle"),
        words(panel.y_name, _LEFT - 44, _TOP - 1),
    )


def _axis(panel: Panel, which: str, start: float, stop: float) -> Axis:
    log = panel.log_x if which == "x" else panel.log_y
    kept = [
        np.asarray(getattr(mark, which), float)
        for mark in panel.marks
        if isinstance(mark, Dots) or mark.fit
    ]
    values = np.concatenate(kept) if kept else np.array([0.0, 1.0])
    values = values[np.isfinite(values)]
    values = values[values > 0] if log else values
    if not len(values):
        values = np.array([1.0, 10.0])
    low, high = float(values.min()), float(values.max())
    if log:
        margin = max((high / low) ** 0.05, 1.02)
        return Axis(low / margin, high * margin, start, stop, True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start, stop)


def _grid(x: Axis, y: Axis) -> list[Markup]:
    drawn = []
    for value, text in ticks(x, 5):
        at = x.at(value)
        drawn.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.stop, class_="grid"))
        drawn.append(words(text, at, y.start + 14, anchor="middle"))
    for value, text in ticks(y, 5):
        at = y.at(value)
        drawn.append(tag("line", x1=x.start, x2=x.stop, y1=at, y2=at, class_="grid"))
        drawn.append(words(text, x.start - 5, at + 4, anchor="end"))
    edge = {"class_": "edge"}
    drawn.append(tag("line", x1=x.start, x2=x.stop, y1=y.start, y2=y.start, **edge))
    drawn.append(tag("line", x1=x.start, x2=x.start, y1=y.start, y2=y.stop, **edge))
    return drawn


def ticks(axis: Axis, most: int) -> list[tuple[float, str]]:
    """Round values of an axis and how they are written."""
    if not axis.log:
        step = round_step(axis.high - axis.low, most)
        return [(value, tick_text(value, step)) for value in axis.ticks(most)]
    first = math.floor(math.log10(axis.low))
    last = math.ceil(math.log10(axis.high))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [f * 10.0**p for p in range(first, last + 1) for f in factors]
        inside = [each for each in values if axis.low <= each <= axis.high]
        if len(inside) >= 3:
            break
    else:
        plain = dataclasses.replace(axis, log=False)
        return ticks(plain, most)
    inside = inside[:: 1 + (len(inside) - 1) // (most + 1)]
    return [(each, _short(each)) for each in inside]


def _short(value: float) -> str:
    if 1e-2 <= value < 1e4:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    front = f"{value / 10.0**power:.2g}"
    return f"1e{power}" if front == "1" else f"{front}e{power}"


def _drawn(mark: Dots | Line, x: Axis, y: Axis) -> list[Markup]:
    pairs = [
        (float(a), float(b))
        for a, b in zip(mark.x, mark.y, strict=True)
        if math.isfinite(a) and math.isfinite(b)
        if (a > 0 or not x.log) and (b > 0 or not y.log)
    ]
    if isinstance(mark, Line):
        inside = [
            (a, b) for a, b in pairs if x.low <= a <= x.high and y.low <= b <= y.high
        ]
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in inside)
        return [
            tag(
                "polyline",
                points=path,
                fill="none",
                stroke=mark.colour,
                stroke_width=mark.width,
                stroke_dasharray=mark.dash,
            )
        ]
    names = list(mark.names) or [None] * len(pairs)
    return [
        tag(
            "circle",
            tag("title", name) if name else None,
            cx=x.at(a),
            cy=y.at(b),
            r=mark.size,
            fill="none" if mark.hollow else mark.colour,
            stroke=mark.colour if mark.hollow else None,
            fill_opacity=mark.opacity,
        )
        for (a, b), name in zip(pairs, names, strict=False)
    ]
