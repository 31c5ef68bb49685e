"""Interleaved, circular: a microbatch goes round the stages once for every chunk.

Stage s of Z has the chunks s, s + Z, … of the layers (Narayanan et al. 2021, section
2.2), so a stage waits for its first task only as long as a chunk takes, not as long as
a stage's layers. As GPipe does, every forward pass comes before any backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaling_lab.parallel.schedules.tasks import Task


def order(
    stage: int, stages: int, microbatches: int, virtual: int = 1
) -> Iterator[Task]:
    """What one stage does, in order.

    Microbatches go in groups of as many as there are stages: when a group's last one
    has entered, its first one has just come round and enters the next chunk.
    """
    del stage
    forward = [
        (first + member, chunk)
        for first in range(0, microbatches, stages)
        for chunk in range(virtual)
        for member in range(stages)
    ]
    for microbatch, chunk in forward:
        yield Task("F", microbatch, chunk)
    for microbatch, chunk in reversed(forward):
        yield Task("B", microbatch, chunk)
