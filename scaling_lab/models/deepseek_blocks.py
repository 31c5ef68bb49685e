"""The layers of DeepSeek: latent attention, then a dense feed-forward or experts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scaling_lab.models.ops import (
    constant,
    gated_silu,
    normal,
    remember,
    rms_norm,
    rotate,
    swiglu,
)
from scaling_lab.parallel.verbs import Verbs

Array = jax.Array


class Attention(nnx.Module):
    """Attention whose keys and values are made from one latent of width R."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        key = rngs.params
        out = 0.02 * (2 * c.L) ** -0.5
        self.config = c
        self.attention_norm_D = constant(1.0, c.D)
        if c.Q is None:
            self.query_DNH = normal(key(), (c.D, c.N, c.H))
            self.query_turned_DNP = normal(key(), (c.D, c.N, c.P))
        else:
            self.query_latent_DQ = normal(key(), (c.D, c.Q))
            self.query_norm_Q = constant(1.0, c.Q)
            self.query_QNH = normal(key(), (c.Q, c.N, c.H))
            self.query_turned_QNP = normal(key(), (c.Q, c.N, c.P))
        self.latent_DR = normal(key(), (c.D, c.R))
        self.latent_norm_R = constant(1.0, c.R)
        self.key_turned_DP = normal(key(), (c.D, c.P))
        self.key_RNH = normal(key(), (c.R, c.N, c.H))
        self.value_RNU = normal(key(), (c.R, c.N, c.U))
        self.out_NUD = normal(key(), (c.N, c.U, c.D), out)

    def attention(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        c = self.config
        h_BTD = self.normed(x_BTD, self.attention_norm_D, place, "attention_norm")
        q_BTNH = self.queries(h_BTD, per_batch, place)
        c_BTR = place.einsum(
            "BTD,DR->BTR", h_BTD, self.latent_DR, name="attention/latent"
        )
        c_BTR = self.latent(c_BTR, self.latent_norm_R, place, "R")
        k_BTNH = place.einsum(
            "BTR,RNH->BTNH", c_BTR, self.key_RNH, name="attention/key"
        )
        v_BTNU = place.einsum(
            "BTR,RNU->BTNU", c_BTR, self.value_RNU, name="attention/value"
        )
        turned_BTP = place.einsum(
            "BTD,DP->BTP", h_BTD, self.key_turned_DP, name="attention/key_turned"
        )
        turned_BT1P = rotate(turned_BTP[:, :, None], per_batch)
        # One for all heads, which stand where those of the plain part do.
        turned_BTNP = turned_BT1P + jnp.zeros_like(k_BTNH[..., :1])
        k_BTNH = jnp.concatenate([k_BTNH, turned_BTNP], -1)
        # Kernels want values as wide as keys.
        v_BTNH = jnp.pad(v_BTNU, ((0, 0),) * 3 + ((0, c.H + c.P - c.U),))
        k_BSKH, v_BSKH, mask, cache = remember(cache, k_BTNH, v_BTNH, per_batch, c.mask)
        o_BTNH = place.attend(q_BTNH, k_BSKH, v_BSKH, mask, name="attention/attend")
        o_BTD = place.einsum(
            "BTNU,NUD->BTD", o_BTNH[..., : c.U], self.out_NUD, name="attention/out"
        )
        return o_BTD, cache

    def queries(self, h_BTD: Array, per_batch: Any, place: Verbs) -> Array:
        """Queries, their plain part before their rotated one."""
        if self.config.Q is None:
            q_BTNH = place.einsum(
                "BTD,DNH->BTNH", h_BTD, self.query_DNH, name="attention/query"
            )
            turned_BTNP = place.einsum(
                "BTD,DNP->BTNP",
                h_BTD,
                self.query_turned_DNP,
                name="attention/query_turned",
            )
        else:
            c_BTQ = place.einsum(
                "BTD,DQ->BTQ",
                h_BTD,
                self.query_latent_DQ,
                name="attention/query_latent",
            )
            c_BTQ = self.latent(c_BTQ, self.query_norm_Q, place, "Q")
            q_BTNH = place.einsum(
                "BTQ,QNH->BTNH", c_BTQ, self.query_QNH, name="attention/query"
            )
            turned_BTNP = place.einsum(
                "BTQ,QNP->BTNP",
                c_BTQ,
                self.query_turned_QNP,
                name="attention/query_turned",
            )
        return jnp.concatenate([q_BTNH, rotate(turned_BTNP, per_batch)], -1)

    def latent(self, c_BTR: Array, scale_R: Any, place: Verbs, letter: str) -> Array:
        """The norm of a latent of width Q or R."""
        wide_BTR = c_BTR.astype(jnp.float32)
        power_BT1 = jnp.mean(jnp.square(wide_BTR), -1, keepdims=True)
        normed_BTR = wide_BTR * jax.lax.rsqrt(power_BT1 + self.config.norm_epsilon)
        stem = {"Q": "query_norm", "R": "latent_norm"}[letter]
        return place.einsum(
            f"BT{letter},{letter}->BT{letter}",
            normed_BTR.astype(c_BTR.dtype),
            scale_R,
            name=f"attention/{stem}",
        )

    def normed(self, x_BTD: Array, scale_D: Any, place: Verbs, stem: str) -> Array:
        return rms_norm(
            place,
            x_BTD,
            scale_D,
            epsilon=self.config.norm_epsilon,
            name=f"{stem.partition('_')[0]}/{stem}",
        )


class DenseBlock(Attention):
    """One layer: attention and a gated feed-forward, each on a normed residual."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        super().__init__(c, rngs)
        key = rngs.params
        self.ffn_norm_D = constant(1.0, c.D)
        self.gate_DF = normal(key(), (c.D, c.F))
        self.up_DF = normal(key(), (c.D, c.F))
        self.down_FD = normal(key(), (c.F, c.D), 0.02 * (2 * c.L) ** -0.5)

    def __call__(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        a_BTD, cache = self.attention(x_BTD, per_batch, place, cache)
        x_BTD = x_BTD + a_BTD
        h_BTD = self.normed(x_BTD, self.ffn_norm_D, place, "ffn_norm")
        g_BTF = place.einsum("BTD,DF->BTF", h_BTD, self.gate_DF, name="ffn/gate")
        u_BTF = place.einsum("BTD,DF->BTF", h_BTD, self.up_DF, name="ffn/up")
        m_BTD = place.einsum(
            "BTF,FD->BTD", gated_silu(g_BTF, u_BTF), self.down_FD, name="ffn/down"
        )
        return x_BTD + m_BTD, {}, cache


class ExpertBlock(Attention):
    """One layer: attention, then shared experts and a choice of routed ones."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        super().__init__(c, rngs)
        key = rngs.params
        out = 0.02 * (2 * c.L) ** -0.5
        self.ffn_norm_D = constant(1.0, c.D)
        self.router_DE = normal(key(), (c.D, c.E))
        if c.biased:
            self.router_bias_E = constant(0.0, c.E)
        self.gate_EDF = normal(key(), (c.E, c.D, c.expert_width))
        self.up_EDF = normal(key(), (c.E, c.D, c.expert_width))
        self.down_EFD = normal(key(), (c.E, c.expert_width, c.D), out)
        self.shared_gate_DF = normal(key(), (c.D, c.shared_width))
        self.shared_up_DF = normal(key(), (c.D, c.shared_width))
        self.shared_down_FD = normal(key(), (c.shared_width, c.D), out)

    def __call__(self, x_BTD: Array, per_batch: Any, place: Verbs, cache: Any):
        a_BTD, cache = self.attention(x_BTD, per_batch, place, cache)
        x_BTD = x_BTD + a_BTD
        h_BTD = self.normed(x_BTD, self.ffn_norm_D, place, "ffn_norm")
        weights = {
            "gate_EDF": self.gate_EDF,
            "up_EDF": self.up_EDF,
            "down_EFD": self.down_EFD,
        }
        routed_BTD, aux = place.experts(
            h_BTD,
            self.router_DE,
            weights,
            swiglu,
            routing=self.config.routing,
            name="ffn/experts",
            bias_E=self.router_bias_E if self.config.biased else None,
        )
        g_BTF = place.einsum(
            "BTD,DF->BTF", h_BTD, self.shared_gate_DF, name="ffn/shared_gate"
        )
        u_BTF = place.einsum(
            "BTD,DF->BTF", h_BTD, self.shared_up_DF, name="ffn/shared_up"
        )
        shared_BTD = place.einsum(
            "BTF,FD->BTD",
            gated_silu(g_BTF, u_BTF),
            self.shared_down_FD,
            name="ffn/shared_down",
        )
        return x_BTD + routed_BTD + shared_BTD, aux, cache


class Further(nnx.Module):
    """What joins a hidden state and the next token's embedding (V3, equation 21).

    The projection of both is one matrix of 2·D by D, here in two halves.
    """

    def __init__(self, c: Any, rngs: nnx.Rngs):
        self.further_state_norm_D = constant(1.0, c.D)
        self.further_token_norm_D = constant(1.0, c.D)
        self.further_state_DF = normal(rngs.params(), (c.D, c.D))
        self.further_token_DF = normal(rngs.params(), (c.D, c.D))
        self.further_final_norm_D = constant(1.0, c.D)
