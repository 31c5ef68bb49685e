"""1F1B (PipeDream-flush, Narayanan et al. 2021a, section 2.2): a forward, a backward.

The bubble is GPipe's. What differs is memory: stage s starts the backward pass of a
microbatch before it has more than Z - s of them in hand.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaling_lab.parallel.schedules.tasks import Task


def order(
    stage: int, stages: int, microbatches: int, virtual: int = 1
) -> Iterator[Task]:
    """What one stage does, in order."""
    del virtual
    ahead = min(stages - stage, microbatches)
    for microbatch in range(ahead):
        yield Task("F", microbatch)
    for microbatch in range(microbatches):
        yield Task("B", microbatch)
        if ahead + microbatch < microbatches:
            yield Task("F", ahead + microbatch)
