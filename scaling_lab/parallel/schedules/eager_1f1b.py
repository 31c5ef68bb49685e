"""1F1B begun as early as can be: the order in which stages that go in step alternate.

Stage s has 2(Z - s) - 1 forward passes ahead of its first backward pass where 1F1B has
Z - s. What a stage hands on then has a tick to travel in either direction, and all
stages can do a forward and then a backward pass in every tick.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaling_lab.parallel.schedules.tasks import Task


def order(
    stage: int, stages: int, microbatches: int, virtual: int = 1
) -> Iterator[Task]:
    """What one stage does, in order."""
    del virtual
    ahead = min(2 * (stages - stage) - 1, microbatches)
    for microbatch in range(ahead):
        yield Task("F", microbatch)
    for microbatch in range(microbatches):
        yield Task("B", microbatch)
        if ahead + microbatch < microbatches:
            yield Task("F", ahead + microbatch)
