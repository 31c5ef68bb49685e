"""The figures with their captions: units, repeats, and what not to conclude."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

import scaling_lab.studies.bars as bars
import scaling_lab.studies.curves as curves
import scaling_lab.studies.units as units
from scaling_lab.record import RunRecord
from scaling_lab.studies.columns import RANK_NOTHING
from scaling_lab.studies.markup import Markup, join, tag
from scaling_lab.studies.plain import known, with_status
from scaling_lab.studies.plots import Figure, Slots
from scaling_lab.studies.rows import dig
from scaling_lab.studies.spread import spread

_MEMORY = (
    "Bytes per device as the compiler plans them, lowest peak first: arguments "
    "(parameters, optimizer state, batch), temporaries (activations, gradients, "
    "buffers), and the peak. One compilation a run; the number is exact for that "
    "compiler and has no spread. It is a plan, not a measurement: do not conclude that "
    "a run fits where allocator and runtime need room as well."
)
_MEMORY_CPU = (
    "XLA fuses and schedules otherwise for a CPU than for an accelerator: compare "
    "layouts here, and do not carry the bytes over."
)
_COLLECTIVES = (
    "Bytes a device moves in one step, by the mesh axes it moves them over, loops "
    "counted as often as they run; lowest first. Compiled, not timed. Do not conclude "
    "time: links differ between axes, and transfers may hide behind arithmetic."
)
_LOSS = (
    "Training loss in nats per token. Runs in one panel asked for the same thing and "
    "differ in layout only, so their curves ought to coincide; where they do, they "
    "take turns in dashes, which keeps each visible. Right, where there are twins: the "
    "relative difference at each step to the run whose final loss is the median, "
    "logarithmic; the key gives the final one. ✓ is within 1e-4 and judged in float32 "
    "only. One seed and one run a layout: do not conclude that a layout learns better."
)
_RATE = (
    "Tokens per second on all devices of a run at its median step time, highest first; "
    "whiskers are the rates of the 95th and 5th percentile step. {repeats} Do not rank "
    "runs whose whiskers overlap, and do not carry an order over to other sizes, "
    "batches or machines."
)
_RATE_SIMULATED = (
    "Simulated: do not rank. Tokens per second where the devices are threads of one "
    "host; bars are dashed and stand in the order of peak memory. {repeats} They show "
    "that a run runs. Do not conclude anything about speed on accelerators."
)
_SPREAD = (
    "Seconds of a step: a dot for each timed step, a band from the 5th to the 95th "
    "percentile, a stroke at the median (written right). {repeats} The axis does not "
    "start at zero; ▸ counts steps beyond its end. Do not conclude more from a few "
    "steps than that they differ: nothing here is independent of what else ran."
)


@dataclasses.dataclass
class Numbering:
    """The numbers given out so far, one row of them for figures and one for tables."""

    figures: int = 0
    tables: int = 0

    def figure(self) -> str:
        """The next figure's name."""
        self.figures += 1
        return f"Figure {self.figures}."

    def table(self) -> str:
        """The next table's name."""
        self.tables += 1
        return f"Table {self.tables}."


def figures(
    rows: pd.DataFrame,
    runs: Sequence[RunRecord],
    slots: Slots,
    numbering: Numbering,
    simulated: bool,
) -> list[Markup]:
    """All figures of one kind of device, speed first if it may be ranked, else last."""
    if with_status(rows, True).empty:
        return [tag("p", "No run ended ok, so there is nothing to draw.")]
    repeats = _repeats(rows)
    seconds = {run.id: step_seconds(run) for run in runs}
    memory_text = f"{_MEMORY} {_MEMORY_CPU}" if simulated else _MEMORY
    rate = _RATE_SIMULATED if simulated else _RATE
    space = [
        (bars.memory(rows, slots), "Peak memory by layout.", memory_text),
        (bars.collectives(rows, slots), "Collective bytes by axis.", _COLLECTIVES),
        (curves.loss(rows, runs, slots), "Loss, and loss equality.", _LOSS),
    ]
    speed = [
        (bars.throughput(rows, slots, simulated), "Throughput by layout.", rate),
        (spread(rows, slots, simulated, seconds), "Step-time spread.", _SPREAD),
    ]

    def drawn(found: Sequence[tuple[Figure | None, str, str]]) -> list[Markup]:
        return [
            _captioned(figure, numbering, title, text.format(repeats=repeats))
            for figure, title, text in found
            if figure is not None
        ]

    if all(figure is None for figure, _, _ in [*space, *speed]):
        return [tag("p", "Nothing was compiled or measured: there is nothing to draw.")]
    if not simulated:
        return drawn([*speed, *space])
    shown = drawn(space)
    timed = drawn(speed)
    heading = tag("h3", f"Speed — {RANK_NOTHING}") if timed else None
    return [*shown, join(heading, *timed)]


def step_seconds(run: RunRecord) -> list[float]:
    """The seconds of every timed step, or nothing."""
    found = dig(run, "measured.step_seconds.all")
    if not isinstance(found, list):
        return []
    numbers = (value for value in found if isinstance(value, (int, float)))
    return [float(value) for value in numbers if not units.is_missing(float(value))]


def _captioned(figure: Figure, numbering: Numbering, title: str, text: str) -> Markup:
    caption = tag(
        "figcaption",
        tag("b", f"{numbering.figure()} {title}"),
        " ",
        text,
        f" {figure.note}" if figure.note else None,
    )
    return tag("figure", figure.key, figure.drawing, caption)


def _repeats(rows: pd.DataFrame) -> str:
    repeats = known(rows, "repeats")
    if not repeats:
        return "How many steps were timed was not recorded."
    low, high = min(repeats), max(repeats)
    many = f"{low}" if low == high else f"{low} to {high}"
    return f"{many} timed steps a run, after warm-up."
