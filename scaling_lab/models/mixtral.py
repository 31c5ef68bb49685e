"""Mixtral (Jiang et al. 2024): Llama's attention, eight SwiGLU experts, two a token."""

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
    normal,
    parameters,
    rms_norm,
    swiglu,
)
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
    V: int
    E: int = 8
    routing: Routing = Routing(top_k=2, balance=0.02)
    tied: bool = False
    rope_base: float = 1_000_000.0
    rope_scaling: None = None
    norm_epsilon: float = 1e-5
    length: int = 32_768
    mask: Sight = EVERYTHING


#: The config.json of mistralai/Mixtral-8x7B-v0.1 and mistralai/Mixtral-8x22B-v0.1.
SIZES: dict[str, Config] = {
    "toy": Config(4, 128, 8, 4, 16, 192, 256, length=1024),
    "8x7b": Config(32, 4096, 32, 8, 128, 14_336, 32_000),
    "8x22b": Config(
        56,
        6144,
        48,
        8,
        128,
        16_384,
        32_000,
        routing=Routing(top_k=2, balance=0.001),
        length=65_536,
    ),
}


class Block(llama.Attention):
    """One layer: attention and a choice of experts, each on a normed residual."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        super().__init__(c, rngs)
        key = rngs.params
        out = 0.02 * (2 * c.L) ** -0.5
        self.ffn_norm_D = constant(1.0, c.D)
        self.router_DE = normal(key(), (c.D, c.E))
        self.gate_EDF = normal(key(), (c.E, c.D, c.F))
        self.up_EDF = normal(key(), (c.E, c.D, c.F))
        self.down_EFD = normal(key(), (c.E, c.F, c.D), out)

    def __call__(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        a_BTD, cache = self.attention(x_BTD, per_batch, place, cache)
        x_BTD = x_BTD + a_BTD
        m_BTD, aux = self.ffn(x_BTD, place)
        return x_BTD + m_BTD, aux, cache

    def ffn(self, x_BTD: Array, place: Verbs) -> tuple[Array, dict[str, Array]]:
        h_BTD = rms_norm(
            place,
            x_BTD,
            self.ffn_norm_D,
            epsilon=self.config.norm_epsilon,
            name="ffn/ffn_norm",
        )
        weights = {
            "gate_EDF": self.gate_EDF,
            "up_EDF": self.up_EDF,
            "down_EFD": self.down_EFD,
        }
        return place.experts(
            h_BTD,
            self.router_DE,
            weights,
            swiglu,
            routing=self.config.routing,
            name="ffn/experts",
        )


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
    attention = 2 * c.D * c.H * (c.N + c.K)
    layer = attention + c.E * (3 * c.D * c.F + c.D) + 2 * c.D
    ends = (1 if c.tied else 2) * c.V * c.D + c.D
    return c.L * layer + ends + choosing.parameter_count(c)
