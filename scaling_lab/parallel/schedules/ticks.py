"""A schedule by ticks: the table that the compiled pipeline walks, and its picture."""

from __future__ import annotations

from typing import NamedTuple

from scaling_lab.parallel.schedules.simulator import (
    BrokenSchedule,
    Costs,
    Timeline,
    simulate,
)
from scaling_lab.parallel.schedules.tasks import Schedule, Task

#: Cells of a picture's line; shorter tasks than that share one.
MOST_CELLS = 400


class Ticks(NamedTuple):
    """Forward tasks by tick and stage; ``None`` where a stage has nothing to do."""

    schedule: Schedule
    rows: tuple[tuple[Task | None, ...], ...]


def forward_ticks(schedule: Schedule) -> Ticks:
    """The forward pass in lockstep: every task takes one tick, and hands on in one.

    Raises:
      BrokenSchedule: a result would have to wait for the stage after, or the table
        runs backward passes in between.
    """
    orders = tuple(
        tuple(task for task in order if task.does == "F") for order in schedule.orders
    )
    for own, order in zip(orders, schedule.orders, strict=True):
        if own != order[: len(own)]:
            raise BrokenSchedule(
                f"{schedule.name}: forward and backward passes alternate; in lockstep "
                "every forward pass comes first, as in gpipe and interleaved"
            )
    unit = Costs(schedule.virtual, schedule.virtual, 0.0)
    spans = simulate(schedule, unit).spans
    cells = {
        (round(span.start), stage): span.task
        for stage, own in enumerate(spans)
        for span in own
        if span.task.does == "F"
    }
    last = max(tick for tick, _ in cells)
    rows = tuple(
        tuple(cells.get((tick, stage)) for stage in range(schedule.stages))
        for tick in range(last + 1)
    )
    _lockstep(schedule, cells)
    return Ticks(schedule, rows)


def _lockstep(schedule: Schedule, cells: dict[tuple[int, int], Task]) -> None:
    stages = schedule.stages
    for (tick, stage), task in cells.items():
        place = task.chunk * stages + stage
        if not place:
            continue
        before = Task("F", task.microbatch, (place - 1) // stages)
        if cells.get((tick - 1, (place - 1) % stages)) != before:
            raise BrokenSchedule(
                f"{schedule.name}: stage {stage} does {task} at tick {tick}, but "
                f"{before} is not what came before it one tick earlier"
            )


def text(timeline: Timeline, width: int = 120) -> str:
    """A picture in letters: a line a stage, time to the right, a dot where it waits.

    A task stands with its microbatch's number (and its chunk as a letter, where there
    are several); what it does shows where it begins. A cell is the shortest task, if
    that does not make too many.
    """
    spans = [span for own in timeline.spans for span in own]
    shortest = min(s.end - s.start for s in spans if s.end > s.start)
    cell = max(shortest, timeline.seconds / MOST_CELLS)
    wide = max(len(_label(timeline, span.task)) for span in spans) + 1
    most = max(1, (width - 10) // wide)
    columns = round(timeline.seconds / cell)
    lines = []
    for stage, own in enumerate(timeline.spans):
        marks = ["·".ljust(wide)] * columns
        for span in own:
            first, past = round(span.start / cell), round(span.end / cell)
            label = _label(timeline, span.task)
            for column in range(first, max(past, first + 1)):
                if column < columns:
                    marks[column] = label.ljust(wide)
                label = "─" * len(label)
        lines.append((f"stage {stage}", marks))
    head = max(len(name) for name, _ in lines) + 2
    return "\n".join(
        "\n".join(
            name.ljust(head) + "".join(marks[start : start + most]).rstrip()
            for name, marks in lines
        )
        + "\n"
        for start in range(0, columns, most)
    )


def _label(timeline: Timeline, task: Task) -> str:
    several = timeline.schedule.virtual > 1
    chunk = chr(ord("a") + task.chunk % 26) if several else ""
    return f"{task.does}{task.microbatch}{chunk}"
