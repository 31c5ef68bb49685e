"""What a mechanism is given on one device, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.parallel.experts import routing as routes
from scaling_lab.parallel.experts.products import Expert, Grouped, Groups
from scaling_lab.parallel.experts.routing import Choice, Tokens
from scaling_lab.parallel.verbs import Routing

Array = jax.Array


class Work(NamedTuple):
    """One device's part of a layer of experts.

    Attributes:
      h_BTD: its tokens. choice: where they go, rows in the order of B, then T.
      weights: of the experts it holds, whole but for the axis of F.
      gathered: of those made whole of devices' parts the dim that was divided most.
      expert: what one does. experts: of the layer.
      axis: mesh axes that E is divided over; none where every device holds all.
      parts: into how many.
      tokens: the axes that B and T are divided over. everybody: tokens on them all.
      grouped: rows times their experts' weights.
      ragged: whether the backend exchanges rows of any number.
    """

    h_BTD: Array
    choice: Choice
    weights: Mapping[str, Array]
    gathered: Mapping[str, int]
    expert: Expert
    experts: int
    axis: tuple[str, ...]
    parts: int
    tokens: Tokens
    everybody: int
    routing: Routing
    grouped: Grouped
    ragged: bool
    name: str

    @property
    def tokens_TD(self) -> Array:
        """The tokens, in one row."""
        return self.h_BTD.reshape(-1, self.h_BTD.shape[-1])

    @property
    def held(self) -> int:
        """Experts on this device."""
        return self.experts // self.parts

    def rank(self) -> Any:
        """This device's number on the axis of experts."""
        return jax.lax.axis_index(self.axis) if self.axis else 0

    def most(self, tokens: int, held: int) -> int:
        """The most rows that so many tokens can send to so many experts."""
        return routes.most(self.routing, tokens, held, self.experts, self.everybody)

    def through(self, rows_CD: Array, size_E: Array, tokens: int) -> Array:
        """Rows of so many tokens, in the order of the experts held, through these."""
        mean = tokens * self.routing.top_k * len(size_E) // self.experts
        groups = Groups(rows_CD, size_E, mean, self.gathered)
        return self.grouped(self.expert, groups, self.weights, self.name)

    def kept(self, rows: Array, word: str) -> Array:
        """Rows under a name of their own, for remat."""
        return checkpoint_name(rows, f"{self.name}/{word}")


class Result(NamedTuple):
    """What a mechanism makes.

    Attributes:
      out_TD: of this device's tokens; a partial sum where F is divided.
      dropped: rows that found no room, of this device's.
    """

    out_TD: Array
    dropped: Any = 0.0
