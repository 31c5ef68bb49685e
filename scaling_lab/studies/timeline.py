"""A picture of who does what when, as one SVG file: a row a worker, time to the right.

It stands alone, with its colours in it: a page's style sheet does not reach a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scaling_lab.studies.markup import Markup, join, tag
from scaling_lab.studies.svg import WIDTH, Axis, words

ROW, GAP, TOP = 26.0, 4.0, 30.0
#: Pixels that a label needs; a narrower task goes without.
LEGIBLE = 13.0


class Bar(NamedTuple):
    """One task of a row: from when to when, what is written on it, and its kind."""

    row: int
    start: float
    end: float
    label: str
    kind: str
    faint: bool = False


#: Fill by kind, and what the kinds are called; readable without colour by their letter.
COLOURS = {"F": "#3b6fb6", "B": "#3f8f57", "I": "#5aa974", "W": "#b98a2f"}
NAMES = {
    "F": "forward",
    "B": "backward",
    "I": "gradient of the input",
    "W": "gradient of the weights",
}

_STYLE = (
    "text{font:11.5px ui-sans-serif,system-ui,sans-serif;fill:#222}"
    "text.on{fill:#fff;font-size:10px}rect.idle{fill:#e9e9ea}"
)


def timeline(
    rows: Sequence[str], bars: Sequence[Bar], title: str, notes: Sequence[str] = ()
) -> Markup:
    """The figure of some rows of tasks.

    Args:
      rows: what stands left of each.
      bars: tasks; what no bar covers is idle.
      title: above the rows. notes: lines of text below them.
    """
    gutter = 18 + 6.5 * max(len(row) for row in rows)
    axis = Axis(0.0, max(bar.end for bar in bars), gutter, WIDTH - 8)
    bottom = TOP + len(rows) * (ROW + GAP)
    labels, idle = [], []
    for number, row in enumerate(rows):
        y = TOP + number * (ROW + GAP)
        labels.append(words(row, 4, y + 17))
        idle.append(_rect(axis.start, axis.stop, y, class_="idle"))
    kinds = [kind for kind in NAMES if any(bar.kind == kind for bar in bars)]
    height = bottom + 26 + 16 * len(notes)
    return tag(
        "svg",
        tag("title", title),
        tag("style", _STYLE),
        tag("rect", width=WIDTH, height=height, fill="#fff"),
        words(title, 4, 18),
        *labels,
        *idle,
        *(_bar(axis, bar) for bar in bars),
        _key(kinds, bottom + 14),
        *(words(note, 4, bottom + 34 + 16 * n) for n, note in enumerate(notes)),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=f"{WIDTH:g}",
        height=f"{height:g}",
        role="img",
    )


def _rect(left: float, right: float, y: float, **more: object) -> Markup:
    return tag("rect", x=left, y=y, width=right - left, height=ROW, **more)


def _bar(axis: Axis, bar: Bar) -> Markup:
    left, right = axis.at(bar.start), axis.at(bar.end)
    y = TOP + bar.row * (ROW + GAP)
    legible = right - left >= LEGIBLE and len(bar.label) * 6 < right - left
    return tag(
        "g",
        tag("title", f"{bar.label}: {bar.start:g} to {bar.end:g}"),
        _rect(
            left,
            right,
            y,
            fill=COLOURS[bar.kind],
            fill_opacity="0.72" if bar.faint else None,
            stroke="#fff",
            stroke_width="0.8",
        ),
        words(bar.label, (left + right) / 2, y + 17, "on", "middle")
        if legible
        else None,
    )


def _key(kinds: Sequence[str], y: float) -> Markup:
    drawn, x = [], 4.0
    for kind in [*kinds, ""]:
        name = f"{kind} {NAMES[kind]}" if kind else "idle"
        fill = COLOURS.get(kind, "#e9e9ea")
        drawn.append(tag("rect", x=x, y=y - 9, width=10, height=10, fill=fill))
        drawn.append(words(name, x + 14, y))
        x += 30 + 6.2 * len(name)
    return join(*drawn)
