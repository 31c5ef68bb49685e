"""The six verbs a model family is written in, and the data they take.

A family is written once, for one device. It names no mesh axis and no sharding: it
says *what* is contracted, looked up, attended to, and a placement decides *where*.
Every verb has a name, because gate and up share an equation and remat, offload, low
precision, profiles and attribution must tell them apart. The name becomes the
`checkpoint_name`, the `named_scope` and the key of an override. The last word of a
verb's name is the stem of its weight: ``ffn/gate`` contracts ``gate_DF``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from scaling_lab.names import one_of
from scaling_lab.parallel.masks import Batch, Mask

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Routing:
    """How tokens find their experts.

    Attributes:
      top_k: experts of a token; where experts choose, the mean.
      gate: ``softmax`` over the experts, or a ``sigmoid`` of each.
      choice: ``token`` (each token its best experts) or ``expert`` (each expert its
        best tokens of the whole microbatch).
      normalise: whether a token's weights are made to sum to 1.
      scaling: of the weights, afterwards.
      groups: of experts, of which a token looks into the best `top_groups`.
      capacity: places of an expert over the mean, where a layout binds the verb to
        places; nothing else drops a token.
      balance, z: weights of the load-balance loss and of the router's z-loss, of every
        layer.
    """

    top_k: int = 2
    gate: str = "softmax"
    choice: str = "token"
    normalise: bool = True
    scaling: float = 1.0
    groups: int = 1
    top_groups: int = 1
    capacity: float = 1.25
    balance: float = 0.01
    z: float = 0.0

    @property
    def text(self) -> str:
        """The words that say it: a token's experts, and what is not the default."""
        told = {word: getattr(self, field) for word, field in _ROUTING.items()}
        usual = {word: getattr(Routing(), field) for word, field in _ROUTING.items()}
        said = {w: v for w, v in told.items() if w == "top" or v != usual[w]}
        words = {w: v if v is not False else "no" for w, v in said.items()}
        return ",".join(f"{word}={value}" for word, value in words.items())

    def check(self, experts: int) -> None:
        """Raises unless a layer of so many experts can be routed so.

        Raises:
          ValueError: what is wrong, and what would do.
        """
        if self.gate not in ("softmax", "sigmoid"):
            raise ValueError(f"gate={self.gate!r}; say softmax or sigmoid")
        if self.choice not in ("token", "expert"):
            raise ValueError(f"choice={self.choice!r}; say token or expert")
        if not 1 <= self.top_k <= experts:
            raise ValueError(
                f"top_k={self.top_k} of E={experts} experts; use 1 to {experts}"
            )
        if not self.capacity > 0:
            raise ValueError(f"capacity={self.capacity}: must be above 0, as 1.25")
        if self.groups == 1:
            return
        size, rest = divmod(experts, self.groups)
        if rest or size < 2 or not 1 <= self.top_groups <= self.groups:
            raise ValueError(
                f"groups={self.groups}, top_groups={self.top_groups} of E={experts} "
                f"experts: groups are equal and of two or more, as {experts // 2}, and "
                "top_groups at most as many"
            )
        if self.top_k > self.top_groups * size:
            raise ValueError(
                f"top_k={self.top_k} is more than the {self.top_groups * size} experts "
                f"of {self.top_groups} groups; raise top_groups"
            )


#: Words of a routing, and the fields they fill.
_ROUTING = {
    "top": "top_k",
    **{f.name: f.name for f in dataclasses.fields(Routing) if f.name != "top_k"},
}
_EITHER = {
    "gate": ("softmax", "sigmoid"),
    "choice": ("token", "expert"),
    "normalise": ("yes", "no"),
    "bias": ("yes", "no"),
}
_COUNTS = ("top", "groups", "top_groups")
#: Words whose number may be 0: without that loss.
_WEIGHTS = ("balance", "z")


def routing_fields(text: str) -> dict[str, Any]:
    """Fields of `Routing` from words, as ``top=1,gate=sigmoid``.

    ``bias`` fills ``biased``, which is no field of it: whether a router has one is its
    family's to say.

    Raises:
      ValueError: an unknown word or a value that cannot be, with those that can.
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        word, _, value = (piece.strip() for piece in part.partition("="))
        one_of("word of routing", word, (*_ROUTING, "bias"))
        field = _ROUTING.get(word, "biased")
        if field in found:
            raise ValueError(f"routing {text!r} says {word} twice")
        found[field] = _value(word, value)
    return found


def _value(word: str, value: str) -> Any:
    """The value of one word of a routing."""
    if word in _EITHER:
        one_of(f"{word} of routing", value, _EITHER[word])
        return value == "yes" if "yes" in _EITHER[word] else value
    if word in _COUNTS:
        if value.isdecimal() and int(value):
            return int(value)
        raise ValueError(
            f"routing {word}={value}: needs a whole number of at least 1, as {word}=2"
        )
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and (number > 0 or number == 0 and word in _WEIGHTS):
        return number
    least, such = ("of at least 0", 0.01) if word in _WEIGHTS else ("above 0", 1.25)
    raise ValueError(
        f"routing {word}={value}: needs a number {least}, as {word}={such}"
    )


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
        routing: Routing,
        name: str,
        bias_E: Any = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Each token through some experts: ``BTD``, and the layer's losses and load.

        Args:
          weights: of the experts, by their names: ``gate_EDF``.
          expert: ``(product, h_CD) -> CD``, what one expert does to rows of its own;
            ``product(x, "gate_EDF")`` is rows times their expert's weight. It closes
            over no arrays.
          bias_E: added where experts are chosen, not to their weights. It is no weight
            to the optimizer: its gradient is its expert's excess load.
        """
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
