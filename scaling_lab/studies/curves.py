"""Loss curves, and how far each strays from the run the others are held to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.record import RunRecord
from scaling_lab.studies.facts import labels, sentence, varying
from scaling_lab.studies.markup import Markup, anchor, join, tag
from scaling_lab.studies.plain import cells_of, keep, known, rows_of, with_status
from scaling_lab.studies.plots import Figure, Slots, key
from scaling_lab.studies.rows import dig, question
from scaling_lab.studies.svg import WIDTH, Axis, canvas, tick_text, words

MOST_CURVES = 9
MOST_PANELS = 6
_MOST_POINTS = 400
_TOP, _BOTTOM = 24.0, 190.0
#: Below this two float64 numbers are as good as equal; log axes end here.
_FLOOR = 1e-10
#: Curves this close lie on one another to the eye.
_COINCIDE = 5e-3


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over steps; ``gaps`` are relative differences to the reference."""

    label: str
    slot: str
    points: tuple[tuple[float, float], ...]
    gaps: tuple[tuple[float, float], ...]
    final: str
    is_reference: bool
    run: str

    @property
    def worst(self) -> float:
        """The largest difference anywhere on the way."""
        return max((gap for _, gap in self.gaps), default=0.0)


def points_of(run: RunRecord, path: str, values: str) -> dict[float, float]:
    """Value by step, without what is missing or not a number."""
    found = dig(run, path)
    if not isinstance(found, Mapping):
        return {}
    numbers, steps = found.get(values), found.get("steps")
    if not isinstance(numbers, list):
        return {}
    if not isinstance(steps, list) or len(steps) != len(numbers):
        steps = list(range(1, len(numbers) + 1))
    return {
        float(step): float(value)
        for step, value in zip(steps, numbers, strict=True)
        if _is_number(step) and _is_number(value)
    }


def loss(frame: pd.DataFrame, runs: Sequence[RunRecord], slots: Slots) -> Figure | None:
    """A panel for every set of runs that owe each other the same loss.

    Left the curves, right their distance from the reference. Runs without such a
    twin share one panel that has no right half.
    """
    panels, notes = [], []
    for rows, heading in _panels(frame, runs):
        curves = _curves(rows, runs, slots)
        if not curves:
            continue
        ranked = sorted(curves, key=lambda each: (not each.is_reference, -each.worst))
        kept = [each for each in curves if each in ranked[:MOST_CURVES]]
        if len(kept) < len(curves):
            notes.append(f"the {len(kept)} of {len(curves)} runs that stray most")
        panels.append(_panel(kept, heading, rows))
    if not panels:
        return None
    if len(panels) > MOST_PANELS:
        notes.insert(0, f"the first {MOST_PANELS} of {len(panels)} panels")
    note = f"Shown: {'; '.join(dict.fromkeys(notes))}." if notes else ""
    return Figure(join(*panels[:MOST_PANELS]), Markup(""), note, "nats per token")


def _panels(
    frame: pd.DataFrame, runs: Sequence[RunRecord]
) -> list[tuple[pd.DataFrame, str]]:
    """(rows, heading): the twins of each question, then all runs without a twin."""
    asked = {run.id: question(run) for run in runs}
    ok = with_status(frame, True)
    ids = cells_of(ok, "id")
    questions = dict.fromkeys(asked[id] for id in ids)
    sets = [keep(ok, [asked[id] == each for id in ids]) for each in questions]
    twins = [rows for rows in sets if len(rows) > 1]
    alone = [rows for rows in sets if len(rows) == 1]
    apart = [name for name in varying(ok) if name != "layout"] if len(ok) else []
    found = []
    for rows in twins:
        told = [name for name in apart if len(set(known(rows, name))) == 1]
        found.append((rows, sentence(rows, told) if len(sets) > 1 else ""))
    if alone:
        found.append((pd.concat(alone), "runs without a twin" if twins else ""))
    return found


def _curves(rows: pd.DataFrame, runs: Sequence[RunRecord], slots: Slots) -> list[Curve]:
    points = {run.id: points_of(run, "measured.loss", "values") for run in runs}
    records = rows_of(rows)
    curves = []
    for label, row in zip(labels(rows, varying(rows)), records, strict=True):
        values = points[row["id"]]
        if not values:
            continue
        reference = points.get(row["loss_reference"] or "", {})
        is_reference = row["loss_reference"] == row["id"]
        shared = [step for step in values if reference.get(step)]
        gaps = {
            step: abs(values[step] - reference[step]) / abs(reference[step])
            for step in shared
        }
        gap = row["loss_relative_difference"]
        final = units.difference(gap, row["precision"], is_reference)
        slot = slots.get(row["layout"] or "", "")
        gaps = {} if is_reference else gaps
        curves.append(
            Curve(
                label,
                _once(slot, curves),
                thin(values),
                thin(gaps),
                final,
                is_reference,
                anchor(row["id"]),
            )
        )
    return curves


def _once(slot: str, before: Sequence[Curve]) -> str:
    """A colour class, dashed where another curve has the colour already."""
    return f"{slot} again" if any(slot in each.slot for each in before) else slot


def thin(points: Mapping[float, float]) -> tuple[tuple[float, float], ...]:
    """Points in the order of their steps, every k-th where there are many."""
    ordered = sorted(points.items())
    stride = 1 + len(ordered) // _MOST_POINTS
    kept = ordered[::stride]
    if ordered and kept[-1] != ordered[-1]:
        kept.append(ordered[-1])
    return tuple(kept)


def _panel(curves: Sequence[Curve], heading: str, rows: pd.DataFrame) -> Markup:
    steps = [step for each in curves for step, _ in each.points]
    values = [value for each in curves for _, value in each.points]
    gaps = [value for each in curves for _, value in each.gaps]
    compared = bool(gaps)
    stop = WIDTH / 2 - 22 if compared else WIDTH - 8
    x = Axis(min(steps), max(steps), 44, stop)
    pad = (max(values) - min(values)) * 0.05 or abs(values[0]) * 0.05 or 1.0
    y = Axis(min(values) - pad, max(values) + pad, _BOTTOM, _TOP)
    drawn: list[Markup | None] = [_frame(x, y, "loss, nats per token")]
    # Turns of dashes show that curves coincide; where they do not, dashes only tear.
    turns = len(curves) if compared and max(gaps) < _COINCIDE else 1
    drawn += [
        tag("g", _line(each.points, x, y, each.slot, place, turns), data_run=each.run)
        for place, each in enumerate(curves)
    ]
    if compared:
        drawn.append(_gap_panel(curves, gaps, x, rows))
    drawing = canvas(WIDTH, _BOTTOM + 38, f"Loss over steps {heading}".strip(), *drawn)
    entries = [
        (f"line {each.slot}", f"{each.label}{'  ' + each.final if compared else ''}")
        for each in curves
    ]
    title = tag("p", heading, class_="panel") if heading else None
    names = key(entries, [each.run for each in curves])
    return join(title, tag("div", drawing, class_="drawing"), names)


def _gap_panel(
    curves: Sequence[Curve], gaps: Sequence[float], steps: Axis, rows: pd.DataFrame
) -> Markup:
    """The right half; differences below the floor are drawn on it."""
    judged = set(cells_of(rows, "precision")) == {"float32"}
    above = [gap for gap in gaps if gap > _FLOOR]
    low = max(min(above, default=_FLOOR), _FLOOR)
    high = max([*above, units.LOSS_TOLERANCE * 3 if judged else low * 10])
    low, high = (
        10.0 ** math.floor(math.log10(low)),
        10.0 ** math.ceil(math.log10(high)),
    )
    y = Axis(low, max(high, low * 10), _BOTTOM, _TOP, log=True)
    x = Axis(steps.low, steps.high, WIDTH / 2 + 44, WIDTH - 8)
    drawn: list[Markup | None] = [_frame(x, y, "relative difference to the reference")]
    if judged:
        height = y.at(units.LOSS_TOLERANCE)
        drawn.append(
            tag("line", x1=x.start, x2=x.stop, y1=height, y2=height, class_="limit")
        )
        drawn.append(words("tolerance", x.stop - 2, height - 4, "tick", "end"))
    for each in curves:
        raised = tuple((step, max(gap, low)) for step, gap in each.gaps)
        line = _line(raised, x, y, each.slot, 0, 1)
        drawn.append(tag("g", line, data_run=each.run))
    return tag("g", *drawn)


def _frame(x: Axis, y: Axis, title: str) -> Markup:
    """Grid, ticks and titles of one half."""
    drawn = [words(title, x.start - 40, 12, "axis")]
    ticks = y.ticks(5)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    for tick in ticks:
        height = y.at(tick)
        text = _power(tick) if y.log else tick_text(tick, step)
        drawn.append(
            tag("line", x1=x.start, x2=x.stop, y1=height, y2=height, class_="grid")
        )
        drawn.append(words(text, x.start - 6, height + 4, "tick", "end"))
    drawn.append(
        tag("line", x1=x.start, x2=x.stop, y1=_BOTTOM, y2=_BOTTOM, class_="zero")
    )
    marks = [tick for tick in x.ticks(5) if tick == round(tick)]
    for tick in marks:
        drawn.append(words(f"{tick:,.0f}", x.at(tick), _BOTTOM + 15, "tick", "middle"))
    middle = (x.start + x.stop) / 2
    drawn.append(words("step", middle, _BOTTOM + 31, "axis", "middle"))
    return tag("g", *drawn)


def _power(tick: float) -> str:
    exponent = round(math.log10(tick))
    return f"1e{exponent}" if exponent else "1"


def _line(
    points: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
    slot: str,
    place: int,
    count: int,
) -> Markup | None:
    """A curve; several take turns in dashes, so that equal ones all stay visible."""
    if not points:
        return None
    if len(points) == 1:
        step, value = points[0]
        return tag("circle", cx=x.at(step), cy=y.at(value), r=3, class_=f"solid {slot}")
    path = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in points)
    dash, offset = None, None
    if count > 1:
        slot = slot.removesuffix(" again")
        dash, offset = f"7 {7 * (count - 1)}", str(-7 * place)
    return tag(
        "polyline",
        points=path,
        class_=f"curve {slot}",
        stroke_dasharray=dash,
        stroke_dashoffset=offset,
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
