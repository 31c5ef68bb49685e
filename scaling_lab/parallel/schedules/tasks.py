"""The words of a schedule: a task, and the order of tasks on every stage."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class Task(NamedTuple):
    """One chunk of layers on one microbatch.

    Attributes:
      does: F, forward; B, backward; or instead of B first I, the gradient of its
        input, and later W, that of its weights, which nobody waits for.
      microbatch: its number.
      chunk: which of the stage's chunks of layers; stage s of Z has the chunks that
        are s, s + Z, s + 2Z, … in the order of layers.
    """

    does: str
    microbatch: int
    chunk: int = 0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The order of tasks on every stage; when they run follows from what they need.

    Attributes:
      name: of the schedule.
      stages: how many (Z). microbatches: of a step (M).
      virtual: chunks of layers on one stage.
      orders: for every stage its tasks, one after another.
    """

    name: str
    stages: int
    microbatches: int
    virtual: int
    orders: tuple[tuple[Task, ...], ...]

    @property
    def chunks(self) -> int:
        """Chunks of layers, on all stages together."""
        return self.stages * self.virtual


def layers_of(chunks: int, layers: int) -> list[int]:
    """How many layers each chunk gets, in order: sizes differ by one at most.

    Raises:
      ValueError: fewer layers than chunks.
    """
    if layers < chunks:
        raise ValueError(
            f"{layers} layers are too few for {chunks} chunks of at least one; nearest "
            f"number of stages × virtual chunks: {layers}"
        )
    return [layers // chunks + (chunk < layers % chunks) for chunk in range(chunks)]
