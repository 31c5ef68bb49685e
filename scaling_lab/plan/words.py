"""A candidate as people and programs write it."""

from __future__ import annotations

import math

import numpy as np

from scaling_lab.cost.points import SCHEDULES
from scaling_lab.dims import AXES
from scaling_lab.layouts import IllegalLayout, Layout, check_turns
from scaling_lab.plan.candidates import Candidates
from scaling_lab.plan.question import Question
from scaling_lab.plan.rank import Ranked, sequence

#: The word of a layout that says a schedule.
PIPELINES = {
    "gpipe": "",
    "interleaved": "+interleaved={pieces}",
    "1f1b": "+1f1b",
    "zero_bubble": "+zero_bubble",
}
#: The word of a layout whose optimizer state rests in the host's memory.
AWAY = "+offload_optimizer"
#: The word of a layout whose gathered weights are kept, with a number of some layers'.
ONCE = "+gather_once"


def layout(ranked: Ranked, index: int) -> str:
    """The layout of a candidate that was priced; see `layout_of`."""
    text = layout_of(ranked.question, ranked.candidates, index)
    kept = 2 - ranked.points.gathers[index]
    return text + (once(round(1 / kept)) if kept > 0 else "")


def once(layers: int) -> str:
    """The word where of so many layers one keeps what it gathered, 0 for none."""
    return ONCE + (f"={layers}" if layers > 1 else "") if layers else ""


def layout_of(question: Question, found: Candidates, index: int) -> str:
    """The layout in the grammar of every command: ``data=2,fsdp=8,tensor=4+sequence``.

    Among candidates ``expert`` counts devices inside ``data × fsdp × context``; as a
    layout it is an axis of its own, taken out of those, of ``fsdp`` first.
    """
    table = found.table
    sizes = {axis: int(table[axis][index]) for axis in AXES}
    left = sizes["expert"]
    for axis in ("fsdp", "data", "context"):
        shared = math.gcd(left, sizes[axis])
        sizes[axis] //= shared
        left //= shared
    named = [f"{axis}={size}" for axis, size in sizes.items() if size > 1]
    text = ",".join(named) or "data=1"
    if sequence(question, found.take(np.array([index])))[0]:
        text += "+sequence"
    if table["ulysses"][index] and sizes["context"] > 1:
        text += "+ulysses"
    zero = int(table["zero"][index])
    text += f"+zero{zero}" if zero in (1, 2) and sizes["data"] > 1 else ""
    if sizes["stage"] > 1:
        name, pieces = SCHEDULES[int(table["schedule"][index])], table["pieces"][index]
        text += PIPELINES[name].format(pieces=pieces)
    return text + (AWAY if table["host"][index] else "")


def schedule(ranked: Ranked, index: int) -> str:
    """Of a pipeline, with its pieces; ``none`` where there is no pipeline."""
    table = ranked.candidates.table
    if table["stage"][index] == 1:
        return "none"
    name = SCHEDULES[int(table["schedule"][index])]
    pieces = int(table["pieces"][index])
    return f"{name}:{pieces}" if pieces > 1 else name


def trained(ranked: Ranked, index: int) -> bool:
    """Whether runs of this layout are trained and compiled here today."""
    table = ranked.candidates.table
    if table["host"][index] and table["stage"][index] > 1:
        return False
    if not _staged(ranked, index):
        return False
    # Experts inside fsdp rest as the plan priced them; inside data they rest otherwise.
    return int(table["fsdp"][index]) % int(table["expert"][index]) == 0


def _staged(ranked: Ranked, index: int) -> bool:
    """Whether our stages take this model's layers in this way."""
    table, shape = ranked.candidates.table, ranked.question.shape
    stages, pieces = int(table["stage"][index]), int(table["pieces"][index])
    if pieces > 1 and shape.layers % (stages * pieces):
        return False
    name = SCHEDULES[int(table["schedule"][index])] if stages > 1 else "gpipe"
    layout = Layout({"stage": stages}, bind={"stack": name})
    try:
        check_turns(layout, getattr(shape.config, "depths", (shape.layers,)))
    except IllegalLayout:
        return False
    return True


def zero(ranked: Ranked, index: int) -> str:
    """Where optimizer state rests: whole, over which axes, and ZeRO's stage."""
    table = ranked.candidates.table
    stage = int(table["zero"][index])
    host = ", in the host's memory" if table["host"][index] else ""
    if not stage:
        return "whole" + host
    axes = ("fsdp", "context") if stage == 3 else ("data", "fsdp", "context")
    over = [axis for axis in axes if table[axis][index] > 1]
    return f"ZeRO-{stage} over " + "×".join(over) + host


def size(count: float) -> str:
    """Bytes for reading, decimal as chips are sold."""
    if count == float("inf"):
        return "any memory"
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB"


def remat(policy: str) -> str:
    """A policy in a few words: the names of verbs without their rooms."""
    parts = [part.partition(":") for part in policy.split(";")]
    return "; ".join(f"{kind} {_short(names)}".strip() for kind, _, names in parts)


def _short(names: str) -> str:
    stems = [name.rpartition("/")[2] for name in names.split(",")]
    short = {"query": "q", "key": "k", "value": "v"}
    return "+".join(short.get(stem, stem) for stem in stems)
