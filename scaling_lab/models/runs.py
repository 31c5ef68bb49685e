"""Layers that see unlike things: the runs of like ones, each a stack of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from scaling_lab.models.ops import EVERYTHING, segment, stacked
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Segment

Array = jax.Array


class Alternating:
    """Of a config whose layers may see unlike things (`Sight.every`): their runs.

    Like layers stand together, so that each run is one stack of parameters.
    """

    L: int
    mask: Sight

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each run of like ones."""
        kinds = map(self.mask.of_layers, range(self.L))
        return tuple(len(list(run)) for _, run in itertools.groupby(kinds))

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Sizes of dims that have several (`models.widths`)."""
        chosen = self.mask.top is not None
        return {"L": self.depths, **({"I": (self.mask.block,)} if chosen else {})}

    @property
    def runs(self) -> list[tuple[str, Any, int]]:
        """Of each run its parameters' name, its layers' config, and its depth."""
        if len(self.depths) == 1:
            return [("layers", self, self.L)]
        found, first = [], 0
        for number, depth in enumerate(self.depths):
            limited = self.mask.of_layers(first)
            sight = (
                dataclasses.replace(self.mask, every=None) if limited else EVERYTHING
            )
            one: Any = dataclasses.replace(self, mask=sight)  # pyright: ignore
            found.append((f"layers_{number:02}", one, depth))
            first += depth
        return found


def layers(block: Callable[..., nnx.Module], config: Any, key: Array) -> dict[str, Any]:
    """Parameters of every run of an `Alternating` config's layers, by its name."""
    if len(config.runs) == 1:
        return {"layers": stacked(block, config, key)}
    keys = jax.random.split(key, len(config.runs))
    return {
        name: stacked(block, one, key, depth)
        for key, (name, one, depth) in zip(keys, config.runs, strict=True)
    }


def segments(
    block: Callable[..., nnx.Module], config: Any, params: Mapping[str, Any]
) -> list[Segment]:
    """The runs of an `Alternating` config's layers for `place.stack`."""
    return [segment(block, one, params[name]) for name, one, _ in config.runs]
