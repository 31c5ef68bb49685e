"""Gemma 3 (Gemma Team 2025), text: five local layers to a global one, q-k norm, GeGLU.

Local layers see a window and turn by a short base, global ones see everything and turn
by a long base, stretched. Runs of like layers are segments of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
from flax import nnx

from scaling_lab.models.ops import (
    EVERYTHING,
    Output,
    constant,
    head_norm,
    normal,
    parameters,
    remember,
    rms_norm,
    rope_tables,
    rotate,
    segment,
    stacked,
)
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Verbs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes by letter (see `dims.ALPHABET`) and the few numbers that are not dims.

    Attributes:
      window: positions that a local layer sees. period: every so manyth is global.
      stretch: of the global layers' positions. query_width: queries are divided by its
        root; default H. embed_width: embeddings are multiplied by its root; default D.
    """

    L: int
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int = 262_208
    window: int = 1024
    period: int = 6
    stretch: float = 8.0
    query_width: int | None = None
    embed_width: int | None = None
    tied: bool = True
    rope_base: float = 1_000_000.0
    local_rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    length: int = 131_072

    @property
    def kinds(self) -> list[bool]:
        """Of every layer whether it is local."""
        return [(layer + 1) % self.period != 0 for layer in range(self.L)]

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each run of like ones, local ones first."""
        return tuple(len(list(run)) for _, run in itertools.groupby(self.kinds))

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Sizes of dims that have several (`models.widths`)."""
        return {"L": self.depths}


#: The text_config of google/gemma-3-1b-pt, -4b-pt, -12b-pt and -27b-pt.
SIZES: dict[str, Config] = {
    "toy": Config(
        4, 128, 8, 4, 16, 384, 256, window=16, period=2, stretch=1.0, length=1024
    ),
    "1b": Config(
        26, 1152, 4, 1, 256, 6912, 262_144, window=512, stretch=1.0, length=32_768
    ),
    "4b": Config(34, 2560, 8, 4, 256, 10_240),
    "12b": Config(48, 3840, 16, 8, 256, 15_360),
    "27b": Config(62, 5376, 32, 16, 128, 21_504, query_width=168),
}


class Block(nnx.Module):
    """One layer: attention and a gated feed-forward, each normed before and after."""

    local = True

    def __init__(self, c: Config, rngs: nnx.Rngs):
        key = rngs.params
        out = 0.02 * (2 * c.L) ** -0.5
        self.config = c
        # A norm's scale is 1 + its weight, so weight decay pulls it to 1.
        self.attention_norm_D = constant(0.0, c.D)
        self.query_DNH = normal(key(), (c.D, c.N, c.H))
        self.key_DKH = normal(key(), (c.D, c.K, c.H))
        self.value_DKH = normal(key(), (c.D, c.K, c.H))
        self.query_norm_H = constant(0.0, c.H)
        self.key_norm_H = constant(0.0, c.H)
        self.out_NHD = normal(key(), (c.N, c.H, c.D), out)
        self.attention_after_norm_D = constant(0.0, c.D)
        self.ffn_norm_D = constant(0.0, c.D)
        self.gate_DF = normal(key(), (c.D, c.F))
        self.up_DF = normal(key(), (c.D, c.F))
        self.down_FD = normal(key(), (c.F, c.D), out)
        self.ffn_after_norm_D = constant(0.0, c.D)

    def __call__(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        h_BTD = self.normed(
            x_BTD, self.attention_norm_D, place, "attention/attention_norm"
        )
        a_BTD, cache = self.attention(h_BTD, per_batch, place, cache)
        x_BTD = x_BTD + self.normed(
            a_BTD, self.attention_after_norm_D, place, "attention/attention_after_norm"
        )
        h_BTD = self.normed(x_BTD, self.ffn_norm_D, place, "ffn/ffn_norm")
        g_BTF = place.einsum("BTD,DF->BTF", h_BTD, self.gate_DF, name="ffn/gate")
        u_BTF = place.einsum("BTD,DF->BTF", h_BTD, self.up_DF, name="ffn/up")
        m_BTD = place.einsum(
            "BTF,FD->BTD",
            jax.nn.gelu(g_BTF, approximate=True) * u_BTF,
            self.down_FD,
            name="ffn/down",
        )
        x_BTD = x_BTD + self.normed(
            m_BTD, self.ffn_after_norm_D, place, "ffn/ffn_after_norm"
        )
        return x_BTD, {}, cache

    def normed(self, x_BTD: Array, weight_D: Any, place: Verbs, name: str) -> Array:
        return rms_norm(
            place, x_BTD, 1 + weight_D, epsilon=self.config.norm_epsilon, name=name
        )

    def attention(self, h_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        c = self.config
        q_BTNH = place.einsum(
            "BTD,DNH->BTNH", h_BTD, self.query_DNH, name="attention/query"
        )
        k_BTKH = place.einsum(
            "BTD,DKH->BTKH", h_BTD, self.key_DKH, name="attention/key"
        )
        v_BTKH = place.einsum(
            "BTD,DKH->BTKH", h_BTD, self.value_DKH, name="attention/value"
        )
        q_BTNH = head_norm(
            place,
            q_BTNH,
            1 + self.query_norm_H,
            epsilon=c.norm_epsilon,
            name="attention/query_norm",
            heads="N",
        )
        k_BTKH = head_norm(
            place,
            k_BTKH,
            1 + self.key_norm_H,
            epsilon=c.norm_epsilon,
            name="attention/key_norm",
            heads="K",
        )
        if c.query_width is not None:
            q_BTNH = q_BTNH * (c.H / c.query_width) ** 0.5
        prefix = "local_" if self.local else ""
        q_BTNH, k_BTKH = (rotate(x, per_batch, prefix) for x in (q_BTNH, k_BTKH))
        sight = Sight(window=c.window) if self.local else EVERYTHING
        k_BSKH, v_BSKH, mask, cache = remember(cache, k_BTKH, v_BTKH, per_batch, sight)
        o_BTNH = place.attend(q_BTNH, k_BSKH, v_BSKH, mask, name="attention/attend")
        o_BTD = place.einsum(
            "BTNH,NHD->BTD", o_BTNH, self.out_NHD, name="attention/out"
        )
        return o_BTD, cache


class GlobalBlock(Block):
    """A layer that sees everything before it."""

    local = False


class Ends(nnx.Module):
    """What stands before and after the layers."""

    def __init__(self, c: Config, rngs: nnx.Rngs):
        self.embed_VD = normal(rngs.params(), (c.V, c.D))
        self.final_norm_D = constant(0.0, c.D)
        if not c.tied:
            self.head_DV = normal(rngs.params(), (c.D, c.V))


def _runs(c: Config) -> list[tuple[str, type[Block], int]]:
    """The runs of like layers: their name, block and depth."""
    return [
        (f"layers_{number:02}", GlobalBlock if number % 2 else Block, depth)
        for number, depth in enumerate(c.depths)
    ]


def init(config: Config, key: Array) -> dict[str, Any]:
    """Parameters in float32; the same numbers under every layout."""
    ends, *keys = jax.random.split(key, 1 + len(config.depths))
    return {
        **parameters(Ends(config, nnx.Rngs(ends))),
        **{
            name: stacked(block, config, key, depth)
            for key, (name, block, depth) in zip(keys, _runs(config), strict=True)
        },
    }


def hidden(
    config: Config, params: Any, batch: Any, place: Verbs, cache: Any = None
) -> Output:
    """Tokens to the normed hidden state under the head."""
    x_BTD = place.take(params["embed_VD"], batch["tokens_BT"], name="embed")
    x_BTD = x_BTD * (config.embed_width or config.D) ** 0.5
    at_BT = batch["positions_BT"]
    tables = {
        **rope_tables(at_BT / config.stretch, config.H, config.rope_base, None),
        **rope_tables(at_BT, config.H, config.local_rope_base, None, "local_"),
    }
    runs = [segment(block, config, params[name]) for name, block, _ in _runs(config)]
    x_BTD, aux, cache = place.stack(runs, x_BTD, {**batch, **tables}, cache)
    hidden_BTD = rms_norm(
        place,
        x_BTD,
        1 + params["final_norm_D"],
        epsilon=config.norm_epsilon,
        name="final_norm",
    )
    return Output(hidden_BTD, aux, cache)


def head(config: Config, params: Any) -> Array:
    """The matrix from hidden state to logits."""
    return params["embed_VD"].T if config.tied else params["head_DV"]


def parameter_count(c: Config) -> int:
    """The closed form, to hold against what `init` makes."""
    attention = 2 * c.D * c.H * (c.N + c.K) + 2 * c.H
    layer = attention + 3 * c.D * c.F + 4 * c.D
    return c.L * layer + (1 if c.tied else 2) * c.V * c.D + c.D
