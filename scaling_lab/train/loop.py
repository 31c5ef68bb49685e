"""The loop around the step, and the loss on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from scaling_lab import models
from scaling_lab.train.program import Program
from scaling_lab.train.step import Metrics, TrainState
from scaling_lab.train.watch import describe_fault


class NotFinite(ArithmeticError):
    """A loss or gradient that is no number; names the step and the first bad tensor."""


def fit(
    program: Program,
    state: TrainState,
    batches: Iterable[Metrics],
    on_step: Callable[[int, Metrics, TrainState], None] = lambda *_: None,
    settle: Callable[[int], bool] = lambda _: False,
) -> TrainState:
    """Trains on `batches`, one step each.

    The next step is dispatched before the last one's metrics are read, so watching the
    loss does not hold up the devices.

    Args:
      on_step: called with the step's number (from 1), its metrics as host numbers, and
        the newest state, which is the next step's unless the step was settled.
      settle: whether to wait for a step before going on, so that `on_step` may keep or
        evaluate the state of that very step.

    Raises:
      NotFinite: a loss or gradient is no number; the step changed nothing.
    """
    pending: tuple[int, Metrics, Metrics] | None = None
    number = int(state.step)
    for batch in batches:
        number += 1
        placed_batch = program.put(batch)
        state, metrics = program.step(state, placed_batch)
        if pending is not None:
            _finish(program, state, pending, on_step)
        pending = (number, metrics, placed_batch)
        if settle(number):
            _finish(program, state, pending, on_step)
            pending = None
    if pending is not None:
        _finish(program, state, pending, on_step)
    return state


def _finish(program: Program, state: TrainState, pending: Any, on_step: Any) -> None:
    number, metrics, batch = pending
    on_step(number, check_finite(program, number, state, batch, metrics), state)


def check_finite(
    program: Program, number: int, state: TrainState, batch: Metrics, metrics: Metrics
) -> Metrics:
    """A step's metrics as host numbers.

    Raises:
      NotFinite: its loss or gradient is no number.
    """
    metrics = jax.device_get(metrics)
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"]):
        return metrics
    raise NotFinite(describe_fault(program, number, state.params, batch, metrics))


def bits_per_byte(
    program: Program, params: Any, batches: Iterable[Metrics], bytes_per_token_V: Any
) -> float | None:
    """Held-out loss in bits per byte of text; ``None`` without held-out text."""
    sight = models.sight(program.config.model)
    nats = bytes_ = 0.0
    for batch in batches:
        result = program.evaluate(params, program.put(batch))
        targets = np.asarray(sight.counted(batch)["targets_BT"])
        nats += float(result["nats"])
        bytes_ += float(bytes_per_token_V[targets[targets >= 0]].sum())
    return nats / math.log(2) / bytes_ if bytes_ else None
