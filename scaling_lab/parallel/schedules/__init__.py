"""Pipeline schedules as data: who does what, in which order. Pure Python, no jax.

One small file per schedule says in which order a stage does its tasks; `simulator`
finds out when each of them can run, and whether all of them ever can. `table` is the
same by ticks, as the compiled pipeline walks it.
"""

from __future__ import annotations

from scaling_lab.names import one_of
from scaling_lab.parallel.schedules import (
    eager_1f1b,
    eager_zb_h1,
    gpipe,
    interleaved,
    one_f_one_b,
    zero_bubble_h1,
)
from scaling_lab.parallel.schedules.simulator import (
    BrokenSchedule,
    Costs,
    Timeline,
    simulate,
)
from scaling_lab.parallel.schedules.tasks import Schedule, Task, layers_of
from scaling_lab.parallel.schedules.ticks import Ticks, forward_ticks, text

__all__ = [
    "KINDS",
    "BrokenSchedule",
    "Costs",
    "Schedule",
    "Task",
    "Ticks",
    "Timeline",
    "forward_ticks",
    "layers_of",
    "make",
    "simulate",
    "text",
]

#: What people call a schedule, and the file that says its order.
KINDS = {
    "gpipe": gpipe,
    "interleaved": interleaved,
    "1f1b": one_f_one_b,
    "eager_1f1b": eager_1f1b,
    "zb_h1": zero_bubble_h1,
    "eager_zb_h1": eager_zb_h1,
}


def make(kind: str, stages: int, microbatches: int, virtual: int = 1) -> Schedule:
    """A schedule.

    Args:
      kind: of `KINDS`. stages: devices in a row. microbatches: of a step.
      virtual: chunks of the layers on one stage; more than 1 of ``interleaved`` alone.

    Raises:
      ValueError: it cannot be, with the nearest that can.
    """
    one_of("schedule", kind, KINDS)
    for name, value in (
        ("stages", stages),
        ("microbatches", microbatches),
        ("virtual", virtual),
    ):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if virtual > 1 and kind != "interleaved":
        raise ValueError(
            f"schedule {kind} has one chunk of layers a stage, not {virtual}; "
            "leave --virtual out, or use the schedule interleaved"
        )
    if kind == "interleaved" and microbatches % stages:
        below = microbatches // stages * stages
        near = ", ".join(str(n) for n in (below, below + stages) if n)
        raise ValueError(
            f"interleaved stages take microbatches in groups of as many as there are "
            f"stages, and {microbatches} are not made of groups of {stages}; nearest "
            f"microbatches: {near}"
        )
    order = KINDS[kind].order
    return Schedule(
        kind,
        stages,
        microbatches,
        virtual,
        tuple(
            tuple(order(stage, stages, microbatches, virtual))
            for stage in range(stages)
        ),
    )
