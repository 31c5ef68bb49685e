"""Qwen3 (Yang et al. 2025) with experts: Qwen3's attention, 8 of 128 experts each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from scaling_lab.models import choosing, llama, mixtral, qwen3
from scaling_lab.models.ops import EVERYTHING, Output, parameters
from scaling_lab.models.runs import Alternating, layers
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Routing, Verbs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config(Alternating):
    """Sizes by letter (see `dims.ALPHABET`); F is the width of one expert."""

    L: int
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int = 151_936
    E: int = 128
    routing: Routing = Routing(top_k=8, balance=0.001)
    tied: bool = False
    rope_base: float = 1_000_000.0
    rope_scaling: None = None
    norm_epsilon: float = 1e-6
    length: int = 40_960
    mask: Sight = EVERYTHING


#: The config.json of Qwen/Qwen3-30B-A3B and Qwen/Qwen3-235B-A22B.
SIZES: dict[str, Config] = {
    "toy": Config(
        4, 128, 8, 4, 32, 64, 256, 16, Routing(top_k=4, balance=0.001), length=1024
    ),
    "30b-a3b": Config(48, 2048, 32, 4, 128, 768),
    "235b-a22b": Config(94, 4096, 64, 4, 128, 1536),
}


class Block(qwen3.Attention, mixtral.Block):
    """One layer: attention and a choice of experts, each on a normed residual."""


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
    layer = attention + c.E * (3 * c.D * c.F + c.D) + 2 * c.D
    ends = (1 if c.tied else 2) * c.V * c.D + c.D
    return c.L * layer + ends + choosing.parameter_count(c)
