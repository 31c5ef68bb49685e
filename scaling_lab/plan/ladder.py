"""Sizes of a family between those that were published: a ladder by width and depth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling_lab import models
from scaling_lab.plan.shape import Shape, of_config

#: Rungs between a size and one of twice its width.
RUNGS = 3
#: Widths are multiples of this, so that meshes divide them.
MULTIPLE = 256


def named(family: str, sizes: Sequence[str]) -> list[Shape]:
    """The shapes of published sizes.

    Raises:
      ValueError: an unknown size, with the nearest.
    """
    return [_shape(models.size(family, size), f"{family} {size}") for size in sizes]


def ladder(family: str, base: str, low: float, high: float) -> list[Shape]:
    """Sizes like a published one, from so many parameters to so many, rising.

    Width and depth grow together, as they do among published sizes of a family.

    Raises:
      ValueError: an unknown size; no rung lies between.
    """
    start = models.size(family, base)
    unit = math.lcm(MULTIPLE, start.D // math.gcd(start.D, start.N))
    found: dict[int, Shape] = {}
    for power in np.arange(-8 * RUNGS, 6 * RUNGS + 1) / RUNGS:
        width = max(1, round(start.D * 2**power / unit)) * unit
        layers = max(2, round(start.L * width / start.D))
        try:
            config = models.resized(start, width=width, layers=layers)
        except ValueError:  # heads would not be whole
            continue
        shape = _shape(config, f"{family} {layers}x{width}")
        if low <= shape.params <= high:
            found[width] = shape
    if not found:
        raise ValueError(
            f"no size like {family} {base} has {low:.3g} to {high:.3g} parameters: "
            "widen --params"
        )
    return [found[width] for width in sorted(found)]


def _shape(config: Any, name: str) -> Shape:
    return dataclasses.replace(of_config(config), name=name)
