"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, tied embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from scaling_lab.models.ops import (
    EVERYTHING,
    Output,
    constant,
    layer_norm,
    normal,
    parameters,
    remember,
)
from scaling_lab.models.runs import Alternating, layers, segments
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Verbs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config(Alternating):
    """Sizes by letter (see `dims.ALPHABET`); `length` is the learned positions."""

    L: int
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int
    length: int = 1024
    tied: bool = True
    norm_epsilon: float = 1e-5
    mask: Sight = EVERYTHING


SIZES: dict[str, Config] = {
    "toy": Config(4, 128, 8, 8, 16, 512, 256),
    "124m": Config(12, 768, 12, 12, 64, 3072, 50_257),
    "355m": Config(24, 1024, 16, 16, 64, 4096, 50_257),
    "774m": Config(36, 1280, 20, 20, 64, 5120, 50_257),
    "1.5b": Config(48, 1600, 25, 25, 64, 6400, 50_257),
}


class Block(nnx.Module):
    """One layer: attention and a GELU feed-forward, each on a normed residual."""

    def __init__(self, c: Config, rngs: nnx.Rngs):
        key = rngs.params
        out = 0.02 * (2 * c.L) ** -0.5
        self.config = c
        self.attention_norm_D = constant(1.0, c.D)
        self.attention_norm_bias_D = constant(0.0, c.D)
        self.query_DNH = normal(key(), (c.D, c.N, c.H))
        self.query_bias_NH = constant(0.0, c.N, c.H)
        self.key_DKH = normal(key(), (c.D, c.K, c.H))
        self.key_bias_KH = constant(0.0, c.K, c.H)
        self.value_DKH = normal(key(), (c.D, c.K, c.H))
        self.value_bias_KH = constant(0.0, c.K, c.H)
        self.out_NHD = normal(key(), (c.N, c.H, c.D), out)
        self.out_bias_D = constant(0.0, c.D)
        self.ffn_norm_D = constant(1.0, c.D)
        self.ffn_norm_bias_D = constant(0.0, c.D)
        self.up_DF = normal(key(), (c.D, c.F))
        self.up_bias_F = constant(0.0, c.F)
        self.down_FD = normal(key(), (c.F, c.D), out)
        self.down_bias_D = constant(0.0, c.D)

    def __call__(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        a_BTD, cache = self.attention(x_BTD, per_batch, place, cache)
        x_BTD = x_BTD + a_BTD
        return x_BTD + self.ffn(x_BTD, place), {}, cache

    def attention(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        h_BTD = layer_norm(
            place,
            x_BTD,
            self.attention_norm_D,
            self.attention_norm_bias_D,
            epsilon=self.config.norm_epsilon,
            name="attention/attention_norm",
        )
        q_BTNH = place.einsum(
            "BTD,DNH->BTNH",
            h_BTD,
            self.query_DNH,
            name="attention/query",
            bias=self.query_bias_NH,
        )
        k_BTKH = place.einsum(
            "BTD,DKH->BTKH",
            h_BTD,
            self.key_DKH,
            name="attention/key",
            bias=self.key_bias_KH,
        )
        v_BTKH = place.einsum(
            "BTD,DKH->BTKH",
            h_BTD,
            self.value_DKH,
            name="attention/value",
            bias=self.value_bias_KH,
        )
        k_BSKH, v_BSKH, mask, cache = remember(
            cache, k_BTKH, v_BTKH, per_batch, self.config.mask
        )
        o_BTNH = place.attend(q_BTNH, k_BSKH, v_BSKH, mask, name="attention/attend")
        o_BTD = place.einsum(
            "BTNH,NHD->BTD",
            o_BTNH,
            self.out_NHD,
            name="attention/out",
            bias=self.out_bias_D,
        )
        return o_BTD, cache

    def ffn(self, x_BTD: Array, place: Verbs) -> Array:
        h_BTD = layer_norm(
            place,
            x_BTD,
            self.ffn_norm_D,
            self.ffn_norm_bias_D,
            epsilon=self.config.norm_epsilon,
            name="ffn/ffn_norm",
        )
        u_BTF = place.einsum(
            "BTD,DF->BTF", h_BTD, self.up_DF, name="ffn/up", bias=self.up_bias_F
        )
        g_BTF = jax.nn.gelu(u_BTF, approximate=True)
        return place.einsum(
            "BTF,FD->BTD", g_BTF, self.down_FD, name="ffn/down", bias=self.down_bias_D
        )


class Ends(nnx.Module):
    """What stands before and after the layers."""

    def __init__(self, c: Config, rngs: nnx.Rngs):
        self.embed_VD = normal(rngs.params(), (c.V, c.D))
        self.position_TD = normal(rngs.params(), (c.length, c.D), 0.01)
        self.final_norm_D = constant(1.0, c.D)
        self.final_norm_bias_D = constant(0.0, c.D)
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
    x_BTD = place.take(params["embed_VD"], batch["tokens_BT"], name="embed")
    x_BTD += place.take(
        params["position_TD"], batch["positions_BT"], name="position", dims="TD"
    )
    runs = segments(Block, config, params)
    x_BTD, aux, cache = place.stack(runs, x_BTD, batch, cache)
    hidden_BTD = layer_norm(
        place,
        x_BTD,
        params["final_norm_D"],
        params["final_norm_bias_D"],
        epsilon=config.norm_epsilon,
        name="final_norm",
    )
    return Output(hidden_BTD, aux, cache)


def head(config: Config, params: Any) -> Array:
    """The matrix from hidden state to logits."""
    return params["embed_VD"].T if config.tied else params["head_DV"]


def parameter_count(c: Config) -> int:
    """The closed form, to hold against what `init` makes."""
    attention = 2 * c.D * c.H * (c.N + c.K) + c.H * (c.N + 2 * c.K) + c.D
    ffn = 2 * c.D * c.F + c.F + c.D
    layer = attention + ffn + 4 * c.D
    embeddings = (1 if c.tied else 2) * c.V * c.D + c.length * c.D
    return c.L * layer + embeddings + 2 * c.D
