"""ZB-H1 (Qi et al. 2023, section 3): 1F1B whose weight gradients fill the bubble.

Nobody waits for the gradient of weights, so a stage does it where it would be idle:
stage s lags s microbatches behind with them. No stage holds more than Z microbatches,
which is what the first stage of 1F1B holds.
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
    lag = min(stage, microbatches)
    for microbatch in range(ahead):
        yield Task("F", microbatch)
    for microbatch in range(microbatches):
        yield Task("I", microbatch)
        if microbatch >= lag:
            yield Task("W", microbatch - lag)
        if ahead + microbatch < microbatches:
            yield Task("F", ahead + microbatch)
    for microbatch in range(microbatches - lag, microbatches):
        yield Task("W", microbatch)
