"""ZB-H1 of stages that go in step: as eager 1F1B, each stage's W later by its place.

Stage s makes the gradients of its weights s microbatches after those of its input, so
all stages make them for the same microbatch at once: none waits to.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaling_lab.parallel.schedules.tasks import Task


def order(
    stage: int, stages: int, microbatches: int, virtual: int = 1
) -> Iterator[Task]:
    """What one stage does, in order."""
    del virtual
    ahead = 2 * (stages - 1 - stage)
    for tick in range(microbatches + ahead + stage):
        for does, microbatch in (
            ("F", tick),
            ("I", tick - ahead),
            ("W", tick - ahead - stage),
        ):
            if 0 <= microbatch < microbatches:
                yield Task(does, microbatch)
