"""Repeated values form a grid; its size and its time are said first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scaling_lab import cost
from scaling_lab.config import RunConfig, configure

#: A rough CPU: start and compile seconds of a run, and FLOP/s of all its cores.
START_SECONDS = 10.0
COMPILE_SECONDS_PER_LAYER = 0.8
FLOPS_PER_SECOND = 2e10

#: Words that are lists by themselves and so form no grid.
LISTS = ("data",)


def grid(words: Mapping[str, Any], devices: int | None = None) -> list[RunConfig]:
    """Every combination of the given values, later words varying fastest.

    Args:
      words: as `config.configure` takes them; a list or tuple is an axis of the grid.

    Raises:
      ValueError: an unknown word or value; nothing has run yet.
    """
    axes = {word: _values(word, value) for word, value in words.items()}
    return [
        configure(**dict(zip(axes, point, strict=True)), devices=devices)
        for point in itertools.product(*axes.values())
    ]


def _values(word: str, value: Any) -> Sequence[Any]:
    if word in LISTS:
        return [value]
    return value if isinstance(value, list | tuple) else [value]


def estimate_seconds(configs: Iterable[RunConfig]) -> float:
    """A rough guess, to a factor of two, of how long runs will take here."""
    return sum(map(_estimate, configs))


def _estimate(config: RunConfig) -> float:
    try:
        flops = cost.executed_per_token(config) * config.tokens_per_step * config.steps
    except (ArithmeticError, TypeError, ValueError):
        return 0.0  # it cannot be, and will not start
    compiling = COMPILE_SECONDS_PER_LAYER * min(config.model.L, 16)
    return START_SECONDS + compiling + flops / FLOPS_PER_SECOND
