"""GPipe (Huang et al. 2019): every forward pass, then every backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from scaling_lab.parallel.schedules.tasks import Task


def order(
    stage: int, stages: int, microbatches: int, virtual: int = 1
) -> Iterator[Task]:
    """What one stage does, in order."""
    del stage, stages, virtual
    for microbatch in range(microbatches):
        yield Task("F", microbatch)
    for microbatch in reversed(range(microbatches)):
        yield Task("B", microbatch)
