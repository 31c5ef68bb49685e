"""The six verbs a model family is written in, and the data they take.

A family is written once, for one device. It names no mesh axis and no sharding: it
says *what* is contracted, looked up, attended to, and a placement decides *where*.
Every verb has a name, because gate and up share an equation and remat, offload, low
precision, profiles and attribution must tell them apart. The name becomes the
`checkpoint_name`, the `named_scope` and the key of an override. The last word of a
verb's name is the stem of its weight: ``ffn/gate`` contracts ``gate_DF``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from scaling_lab.parallel.masks import Batch, Mask

Array = jax.Array


class TokenLoss(NamedTuple):
    """Per-token loss in nats, float32; uncounted tokens (target < 0) hold zero."""

    nll_BT: Array
    log_normalizer_BT: Array


class Segment(NamedTuple):
    """A run of like layers.

    Attributes:
      block: ``(params, x_BTD, per_batch, cache) -> (x_BTD, aux, cache)`` for one layer;
        it closes over no arrays.
      params: its parameters stacked over layers, names with a leading ``L``.
    """

    block: Callable[..., Any]
    params: Mapping[str, Any]


class Verbs(Protocol):
    """What a family may say. `layouts.Placement` does it, `cost.Ledger` records it."""

    def einsum(
        self,
        equation: str,
        *operands: Any,
        name: str,
        bias: Any = None,
    ) -> Array:
        """A contraction. An operand without a ``B`` is a weight."""
        ...

    def take(
        self, table: Any, indices_BT: Array, *, name: str, dims: str = "VD"
    ) -> Array:
        """Rows of a table: ``table[indices]``, dims ``BT`` + the row's."""
        ...

    def attend(
        self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, *, name: str
    ) -> Array:
        """Softmax attention, scale ``H**-0.5``; returns ``BTNH``."""
        ...

    def experts(
        self,
        h_BTD: Array,
        router_DE: Any,
        weights: Mapping[str, Any],
        expert: Callable[..., Array],
        *,
        top_k: int,
        name: str,
    ) -> Array:
        """Top-k routing: each token through its k best experts, gates summing to 1."""
        ...

    def stack(
        self, segments: Sequence[Segment], x_BTD: Array, per_batch: Batch, cache=None
    ) -> tuple[Array, Any, Any]:
        """The layers, one after another: ``(x_BTD, aux, cache)``."""
        ...

    def cross_entropy(
        self, hidden_BTD: Array, head_DV: Array, targets_BT: Array, *, name: str
    ) -> TokenLoss:
        """Loss of the next token without logits gathered on one device."""
        ...
