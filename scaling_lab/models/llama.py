"""Llama (Touvron et al. 2023, Grattafiori et al. 2024): RMSNorm, RoPE, GQA, SwiGLU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from scaling_lab.models import choosing
from scaling_lab.models.choosing import Choosing
from scaling_lab.models.ops import (
    EVERYTHING,
    Output,
    RopeScaling,
    constant,
    gated_silu,
    normal,
    parameters,
    remember,
    rms_norm,
    rope_tables,
    rotate,
)
from scaling_lab.models.runs import Alternating, layers, segments
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Verbs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config(Alternating):
    """Sizes by letter (see `dims.ALPHABET`) and the few numbers that are not dims."""

    L: int
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int
    tied: bool = False
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    length: int = 8192
    mask: Sight = EVERYTHING


_STRETCH = RopeScaling()
_LLAMA2 = {"rope_base": 10_000.0, "length": 4096}
_LLAMA31 = {"rope_scaling": _STRETCH, "length": 131_072}

SIZES: dict[str, Config] = {
    # Trains on a laptop; byte vocabulary.
    "toy": Config(4, 128, 8, 4, 16, 384, 256, length=1024),
    # A step's worth of real work for one CPU; see experiments/cpu_step_against_peers.
    "33m": Config(8, 512, 8, 4, 64, 1536, 8192, length=2048),
    "1b": Config(
        16,
        2048,
        32,
        8,
        64,
        8192,
        128_256,
        tied=True,
        rope_scaling=RopeScaling(factor=32.0),
        length=131_072,
    ),
    "2-7b": Config(32, 4096, 32, 32, 128, 11_008, 32_000, **_LLAMA2),
    "2-13b": Config(40, 5120, 40, 40, 128, 13_824, 32_000, **_LLAMA2),
    "2-70b": Config(80, 8192, 64, 8, 128, 28_672, 32_000, **_LLAMA2),
    "8b": Config(32, 4096, 32, 8, 128, 14_336, 128_256, **_LLAMA31),
    "70b": Config(80, 8192, 64, 8, 128, 28_672, 128_256, **_LLAMA31),
    "405b": Config(126, 16_384, 128, 8, 128, 53_248, 128_256, **_LLAMA31),
}


class Attention(Choosing):
    """The first half of a layer: attention on a normed residual."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        key = rngs.params
        # Both writers to the residual start small, so depth does not grow its variance.
        out = 0.02 * (2 * c.L) ** -0.5
        self.config = c
        self.attention_norm_D = constant(1.0, c.D)
        self.query_DNH = normal(key(), (c.D, c.N, c.H))
        self.key_DKH = normal(key(), (c.D, c.K, c.H))
        self.value_DKH = normal(key(), (c.D, c.K, c.H))
        self.out_NHD = normal(key(), (c.N, c.H, c.D), out)
        if c.mask.top is not None:
            self.prepare(c, rngs)

    def attention(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        h_BTD = rms_norm(
            place,
            x_BTD,
            self.attention_norm_D,
            epsilon=self.config.norm_epsilon,
            name="attention/attention_norm",
        )
        q_BTNH = place.einsum(
            "BTD,DNH->BTNH", h_BTD, self.query_DNH, name="attention/query"
        )
        k_BTKH = place.einsum(
            "BTD,DKH->BTKH", h_BTD, self.key_DKH, name="attention/key"
        )
        v_BTKH = place.einsum(
            "BTD,DKH->BTKH", h_BTD, self.value_DKH, name="attention/value"
        )
        q_BTNH, k_BTKH = self.turned(q_BTNH, k_BTKH, per_batch, place)
        k_BSKH, v_BSKH, mask, cache = remember(
            cache, k_BTKH, v_BTKH, per_batch, self.config.mask
        )
        if self.config.mask.top is None:
            o_BTNH = place.attend(q_BTNH, k_BSKH, v_BSKH, mask, name="attention/attend")
        else:
            arrays = (q_BTNH, k_BSKH, v_BSKH)
            o_BTNH, cache = self.choosing(h_BTD, arrays, (mask, cache), place)
        o_BTD = place.einsum(
            "BTNH,NHD->BTD", o_BTNH, self.out_NHD, name="attention/out"
        )
        return o_BTD, cache

    def turned(
        self, q_BTNH: Array, k_BTKH: Array, per_batch: Any, place: Verbs
    ) -> tuple[Array, Array]:
        """Queries and keys as they meet: rotated by their positions."""
        return rotate(q_BTNH, per_batch), rotate(k_BTKH, per_batch)


class Block(Attention):
    """One layer: attention and a gated feed-forward, each on a normed residual."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        super().__init__(c, rngs)
        key = rngs.params
        out = 0.02 * (2 * c.L) ** -0.5
        self.ffn_norm_D = constant(1.0, c.D)
        self.gate_DF = normal(key(), (c.D, c.F))
        self.up_DF = normal(key(), (c.D, c.F))
        self.down_FD = normal(key(), (c.F, c.D), out)

    def __call__(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        a_BTD, cache = self.attention(x_BTD, per_batch, place, cache)
        x_BTD = x_BTD + a_BTD
        return x_BTD + self.ffn(x_BTD, place), {}, cache

    def ffn(self, x_BTD: Array, place: Verbs) -> Array:
        h_BTD = rms_norm(
            place,
            x_BTD,
            self.ffn_norm_D,
            epsilon=self.config.norm_epsilon,
            name="ffn/ffn_norm",
        )
        g_BTF = place.einsum("BTD,DF->BTF", h_BTD, self.gate_DF, name="ffn/gate")
        u_BTF = place.einsum("BTD,DF->BTF", h_BTD, self.up_DF, name="ffn/up")
        return place.einsum(
            "BTF,FD->BTD", gated_silu(g_BTF, u_BTF), self.down_FD, name="ffn/down"
        )


class Ends(nnx.Module):
    """What stands before and after the layers."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        self.embed_VD = normal(rngs.params(), (c.V, c.D))
        self.final_norm_D = constant(1.0, c.D)
        if not c.tied:
            self.head_DV = normal(rngs.params(), (c.D, c.V))


def init(config: Config, key: Array) -> dict[str, Any]:
    """Parameters in float32; the same numbers under every layout."""
    ends, stack = jax.random.split(key)
    return {
        **parameters(Ends(config, nnx.Rngs(ends))),
        **layers(Block, config, stack),
    }


def hidden(
    config: Config, params: Any, batch: Any, place: Verbs, cache: Any = None
) -> Output:
    """Tokens to the normed hidden state under the head."""
    return through(Block, config, params, batch, place, cache)


def through(
    block: Callable[..., nnx.Module],
    config: Any,
    params: Any,
    batch: Any,
    place: Verbs,
    cache: Any,
) -> Output:
    """`hidden` of a family that differs from Llama in its block alone."""
    x_BTD = place.take(params["embed_VD"], batch["tokens_BT"], name="embed")
    tables = rope_tables(
        batch["positions_BT"], config.H, config.rope_base, config.rope_scaling
    )
    runs = segments(block, config, params)
    x_BTD, aux, cache = place.stack(runs, x_BTD, {**batch, **tables}, cache)
    hidden_BTD = rms_norm(
        place,
        x_BTD,
        params["final_norm_D"],
        epsilon=config.norm_epsilon,
        name="final_norm",
    )
    return Output(hidden_BTD, aux, cache)


def head(config: Any, params: Any) -> Array:
    """The matrix from hidden state to logits."""
    return params["embed_VD"].T if config.tied else params["head_DV"]


def parameter_count(c: Config) -> int:
    """The closed form, to hold against what `init` makes."""
    attention = 2 * c.D * c.H * (c.N + c.K)
    layer = attention + 3 * c.D * c.F + 2 * c.D
    ends = (1 if c.tied else 2) * c.V * c.D + c.D
    return c.L * layer + ends + choosing.parameter_count(c)
