"""When every task of a schedule runs, what waits, what is held; or why it never ends.

A stage does its tasks in its order and each as soon as what it needs has arrived:

* F needs the same microbatch's F of the chunk before;
* B and I need the own F, and B or I of the chunk after;
* W needs the own I.

Sending takes time and keeps no stage busy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from scaling_lab.parallel.schedules.tasks import Schedule, Task


class BrokenSchedule(ValueError):
    """A schedule that leaves a task out, does one twice, or waits for ever."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds, or any unit, of a whole stage of mean size on one microbatch.

    Attributes:
      forward: of F. input_gradient: of I. weight_gradient: of W; B is both.
      send: from the end of a task to when another stage may use its result.
    """

    forward: float = 1.0
    input_gradient: float = 1.0
    weight_gradient: float = 1.0
    send: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(
                    f"cost {field.name}={getattr(self, field.name)}: must be a number "
                    "of at least 0"
                )
        if not self.forward + self.input_gradient + self.weight_gradient:
            raise ValueError("costs of all tasks are 0, so nothing can be compared")

    def of(self, does: str) -> float:
        """What a task costs on a whole stage."""
        return {
            "F": self.forward,
            "B": self.input_gradient + self.weight_gradient,
            "I": self.input_gradient,
            "W": self.weight_gradient,
        }[does]


class Span(NamedTuple):
    """A task, and when it runs."""

    task: Task
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A schedule that was run.

    Attributes:
      schedule: what was run.
      spans: for every stage its tasks with their times.
    """

    schedule: Schedule
    spans: tuple[tuple[Span, ...], ...]

    @property
    def seconds(self) -> float:
        """From the first task's start to the last one's end."""
        return max(spans[-1].end for spans in self.spans)

    @property
    def idle(self) -> tuple[float, ...]:
        """For every stage the time it waits."""
        busy = (sum(span.end - span.start for span in spans) for spans in self.spans)
        return tuple(self.seconds - time for time in busy)

    @property
    def bubble(self) -> float:
        """The share of all stages' time that is waited."""
        return sum(self.idle) / (self.seconds * len(self.spans))

    @property
    def in_flight(self) -> tuple[float, ...]:
        """For every stage the most microbatches whose activations it holds at once.

        From a forward pass to the end of its backward pass, W included; a chunk of v
        counts for 1/v.
        """
        return tuple(self._peak(spans) for spans in self.spans)

    def _peak(self, spans: Sequence[Span]) -> float:
        held = most = 0
        last = "W" if any(span.task.does == "W" for span in spans) else "B"
        for span in spans:
            held += span.task.does == "F"
            most = max(most, held)
            held -= span.task.does == last
        return most / self.schedule.virtual


def simulate(
    schedule: Schedule,
    costs: Costs | None = None,
    layers: Sequence[int] | None = None,
) -> Timeline:
    """Runs a schedule.

    Args:
      costs: of tasks; by default F, I and W take 1 each, and sending nothing.
      layers: of every chunk in the order of layers, where they differ in size; a task
        costs in proportion.

    Raises:
      BrokenSchedule: a task is missing, foreign, done twice or never ready.
    """
    _whole(schedule)
    costs = costs or Costs()
    sizes = list(layers or [1] * schedule.chunks)
    if len(sizes) != schedule.chunks:
        raise ValueError(
            f"{len(sizes)} sizes of layers for {schedule.chunks} chunks; give one each"
        )
    share = schedule.stages / sum(sizes)
    ends: dict[tuple[str, int, int], float] = {}
    clocks = [0.0] * schedule.stages
    spans: list[list[Span]] = [[] for _ in range(schedule.stages)]
    moved = True
    while moved:
        moved = False
        for stage, order in enumerate(schedule.orders):
            while len(spans[stage]) < len(order):
                task = order[len(spans[stage])]
                ready = _ready(schedule, stage, task, ends, costs.send)
                if ready is None:
                    break
                place = task.chunk * schedule.stages + stage
                start = max(clocks[stage], ready)
                end = start + costs.of(task.does) * sizes[place] * share
                ends[_result(task), task.microbatch, place] = end
                spans[stage].append(Span(task, start, end))
                clocks[stage], moved = end, True
    _finished(schedule, spans)
    return Timeline(schedule, tuple(map(tuple, spans)))


def _result(task: Task) -> str:
    """What a task leaves behind: I is all of B that another task waits for."""
    return "I" if task.does == "B" else task.does


def _needs(schedule: Schedule, stage: int, task: Task) -> list[tuple[str, int, int]]:
    place = task.chunk * schedule.stages + stage
    if task.does == "W":
        return [("I", task.microbatch, place)]
    if task.does == "F":
        return [("F", task.microbatch, place - 1)] if place else []
    own = [("F", task.microbatch, place)]
    if place == schedule.chunks - 1:
        return own
    return [*own, ("I", task.microbatch, place + 1)]


def _ready(
    schedule: Schedule, stage: int, task: Task, ends: dict, send: float
) -> float | None:
    """When everything a task needs has arrived; ``None`` if something has not run."""
    ready = 0.0
    for need in _needs(schedule, stage, task):
        if need not in ends:
            return None
        away = need[2] % schedule.stages != stage
        ready = max(ready, ends[need] + send * away)
    return ready


def _whole(schedule: Schedule) -> None:
    """Raises unless every stage does each of its tasks once."""
    if len(schedule.orders) != schedule.stages:
        raise BrokenSchedule(
            f"{schedule.name}: {len(schedule.orders)} orders for "
            f"{schedule.stages} stages"
        )
    each = [
        (microbatch, chunk)
        for microbatch in range(schedule.microbatches)
        for chunk in range(schedule.virtual)
    ]
    for stage, order in enumerate(schedule.orders):
        split = any(task.does in "IW" for task in order)
        wanted = {Task(d, m, c) for d in ("FIW" if split else "FB") for m, c in each}
        done: set[Task] = set()
        for task in order:
            if task in done or task not in wanted:
                why = "is done twice" if task in done else "is none of its tasks"
                raise BrokenSchedule(f"{schedule.name}: stage {stage}, {task} {why}")
            done.add(task)
        if wanted - done:
            raise BrokenSchedule(
                f"{schedule.name}: stage {stage} never does {min(wanted - done)}, "
                f"one of {len(wanted - done)} missing"
            )


def _finished(schedule: Schedule, spans: Sequence[Sequence[Span]]) -> None:
    stuck = [
        f"stage {stage} before {order[len(done)]}"
        for stage, (order, done) in enumerate(zip(schedule.orders, spans, strict=True))
        if len(done) < len(order)
    ]
    if stuck:
        raise BrokenSchedule(
            f"{schedule.name}: it waits for ever: {'; '.join(stuck)}; each needs what "
            "a stage does only later"
        )
