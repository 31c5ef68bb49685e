"""Stages that alternate in step: what all of them do in a tick.

`parallel.alternating` walks these ticks; `eager_1f1b` and `eager_zb_h1` say the same as
orders of single stages.
"""

from __future__ import annotations


def does(tick: int, stages: int, microbatches: int, apart: bool) -> str:
    """What the stages do in a tick: F, B (or I, the input's gradient alone), W."""
    forward = "F" * (tick < stages - 1 + microbatches)
    backward = ("I" if apart else "B") * (tick >= stages - 1)
    return forward + backward + "W" * (apart and tick >= 2 * (stages - 1))


def order(
    stages: int, microbatches: int, apart: bool = False
) -> list[list[tuple[str, int]]]:
    """What each stage does in order, as those ticks make it."""
    done: list[list[tuple[str, int]]] = [[] for _ in range(stages)]
    for tick in range(microbatches + 2 * (stages - 1)):
        doing = does(tick, stages, microbatches, apart)
        for stage, own in enumerate(done):
            back = tick - 2 * (stages - 1) + stage
            numbers = {"F": tick - stage, "B": back, "I": back, "W": back - stage}
            for task in doing:
                if 0 <= numbers[task] < microbatches:
                    own.append((task, numbers[task]))
    return done
