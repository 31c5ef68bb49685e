"""Qwen3 (Yang et al. 2025), dense: Llama with norms of queries and keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from scaling_lab.models import choosing, llama
from scaling_lab.models.ops import (
    EVERYTHING,
    Output,
    constant,
    head_norm,
    parameters,
    rotate,
)
from scaling_lab.models.runs import Alternating, layers
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Verbs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config(Alternating):
    """Sizes by letter (see `dims.ALPHABET`); H is given, not D / N."""

    L: int
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int = 151_936
    tied: bool = False
    rope_base: float = 1_000_000.0
    rope_scaling: None = None
    norm_epsilon: float = 1e-6
    length: int = 40_960
    mask: Sight = EVERYTHING


#: The config.json of Qwen/Qwen3-0.6B, -1.7B, -4B, -8B, -14B and -32B.
SIZES: dict[str, Config] = {
    "toy": Config(4, 128, 8, 4, 32, 384, 256, length=1024),
    "0.6b": Config(28, 1024, 16, 8, 128, 3072, tied=True),
    "1.7b": Config(28, 2048, 16, 8, 128, 6144, tied=True),
    "4b": Config(36, 2560, 32, 8, 128, 9728, tied=True),
    "8b": Config(36, 4096, 32, 8, 128, 12_288),
    "14b": Config(40, 5120, 40, 8, 128, 17_408),
    "32b": Config(64, 5120, 64, 8, 128, 25_600),
}


class Attention(llama.Attention):
    """Llama's attention, queries and keys normed before they are rotated."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        super().__init__(c, rngs)
        self.query_norm_H = constant(1.0, c.H)
        self.key_norm_H = constant(1.0, c.H)

    def turned(
        self, q_BTNH: Array, k_BTKH: Array, per_batch: Any, place: Verbs
    ) -> tuple[Array, Array]:
        q_BTNH = head_norm(
            place,
            q_BTNH,
            self.query_norm_H,
            epsilon=self.config.norm_epsilon,
            name="attention/query_norm",
            heads="N",
        )
        k_BTKH = head_norm(
            place,
            k_BTKH,
            self.key_norm_H,
            epsilon=self.config.norm_epsilon,
            name="attention/key_norm",
            heads="K",
        )
        return rotate(q_BTNH, per_batch), rotate(k_BTKH, per_batch)


class Block(Attention, llama.Block):
    """One layer: attention and a gated feed-forward, each on a normed residual."""


def init(config: Config, key: Array) -> dict[str, Any]:
    """Parameters in float32; the same numbers under every layout."""
    ends, stack = jax.random.split(key)
    return {
        **parameters(llama.Ends(config, nnx.Rngs(ends))),
        **layers(Block, config, stack),
    }


def hidden(
    config: Config, params: Any, batch: Any, place: Verbs, cache: Any = None
) -> Output:
    """Tokens to the normed hidden state under the head."""
    return llama.through(Block, config, params, batch, place, cache)


head = llama.head


def parameter_count(c: Config) -> int:
    """The closed form, to hold against what `init` makes."""
    attention = 2 * c.D * c.H * (c.N + c.K) + 2 * c.H
    layer = attention + 3 * c.D * c.F + 2 * c.D
    ends = (1 if c.tied else 2) * c.V * c.D + c.D
    return c.L * layer + ends + choosing.parameter_count(c)
