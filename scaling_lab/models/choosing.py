"""Attention whose queries choose the blocks they see, and what makes them choose well.

Native Sparse Attention (Yuan et al. 2025, section 3): keys and values of a block are
compressed to one of each by learned maps; queries attend to these, and the weights of
that branch say which blocks another branch sees in full. A choice has no gradient, so
the compressors learn from the branch they serve, and a gate mixes both.

Different from the paper the branches share keys and values, and a window's branch is
part of the chosen blocks'; `parallel.choice` says who chooses.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scaling_lab.models.ops import constant, normal
from scaling_lab.parallel import choice
from scaling_lab.parallel.masks import Mask
from scaling_lab.parallel.verbs import Verbs

Array = jax.Array


class Choosing(nnx.Module):
    """What a layer with `Sight.top` has beside its projections."""

    #: A family whose block is one of these can choose.
    chooses = True
    config: Any

    def prepare(self, c: Any, rngs: nnx.Rngs) -> None:
        """The gates and compressors: a mean at first, and what a small network adds."""
        key, size = rngs.params, c.mask.block
        self.chosen_gate_DN = normal(key(), (c.D, c.N))
        self.summary_gate_DN = normal(key(), (c.D, c.N))
        self.key_pool_IH = constant(1 / size, size, c.H)
        self.key_up_HU = normal(key(), (c.H, c.H), c.H**-0.5)
        self.key_down_UH = constant(0.0, c.H, c.H)
        self.value_pool_IH = constant(1 / size, size, c.H)
        self.value_up_HU = normal(key(), (c.H, c.H), c.H**-0.5)
        self.value_down_UH = constant(0.0, c.H, c.H)

    def compressed(self, x_BSKH: Array, mask: Mask, place: Verbs, stem: str) -> Array:
        """One key or value for each block: of the document that ends it.

        Args:
          stem: ``key`` or ``value``.
        """
        size = self.config.mask.block
        batch, length, heads, width = x_BSKH.shape
        blocks_BSIKH = x_BSKH.reshape(batch, length // size, size, heads, width)
        if mask.k_segments_BS is not None:
            own_BSI = mask.k_segments_BS.reshape(batch, -1, size)
            own_BSI = (own_BSI == own_BSI[:, :, -1:]).astype(x_BSKH.dtype)
            own_BSI = own_BSI / own_BSI.mean(-1, keepdims=True)
            blocks_BSIKH = blocks_BSIKH * own_BSI[..., None, None]
        pool_IH, up_HU, down_UH = (
            getattr(self, f"{stem}_{name}") for name in ("pool_IH", "up_HU", "down_UH")
        )
        pooled_BSKH = place.einsum(
            "BSIKH,IH->BSKH", blocks_BSIKH, pool_IH, name=f"attention/{stem}_pool"
        )
        up_BSKU = place.einsum(
            "BSKH,HU->BSKU", pooled_BSKH, up_HU, name=f"attention/{stem}_up"
        )
        return pooled_BSKH + place.einsum(
            "BSKU,UH->BSKH",
            jax.nn.silu(up_BSKU),
            down_UH,
            name=f"attention/{stem}_down",
        )

    def choosing(
        self, h_BTD: Array, arrays: tuple[Array, Array, Array], seen: Any, place: Verbs
    ) -> tuple[Array, Any]:
        """Both branches, mixed by gates: summaries of all, and chosen blocks in full.

        Args:
          arrays: queries, and keys and values of the whole row or cache.
          seen: their mask, and the cache that they are in.
        """
        (q_BTNH, k_BSKH, v_BSKH), (mask, cache) = arrays, seen
        sight = self.config.mask
        summaries = choice.summaries(mask, sight.block)
        key_BSKH = self.compressed(k_BSKH, mask, place, "key")
        value_BSKH = self.compressed(v_BSKH, mask, place, "value")
        summary_BTNH = place.attend(
            q_BTNH, key_BSKH, value_BSKH, summaries, name="attention/summary"
        )
        # Before its document's first whole block a query sees no summary.
        some_BT11 = jnp.any(summaries.visible_BTS(), -1)[..., None, None]
        summary_BTNH = jnp.where(some_BT11, summary_BTNH, 0)
        firsts, cache = choice.firsts(q_BTNH, mask, sight.block, cache)
        mask = choice.choose(firsts, key_BSKH, summaries, (sight.top, sight.near), mask)
        chosen_BTNH = place.attend(
            q_BTNH, k_BSKH, v_BSKH, mask, name="attention/attend"
        )
        gates_BTN1 = [
            jax.nn.sigmoid(
                place.einsum("BTD,DN->BTN", h_BTD, gate_DN, name=f"attention/{stem}")
            )[..., None]
            for stem, gate_DN in (
                ("chosen_gate", self.chosen_gate_DN),
                ("summary_gate", self.summary_gate_DN),
            )
        ]
        mixed_BTNH = gates_BTN1[0] * chosen_BTNH + gates_BTN1[1] * summary_BTNH
        return mixed_BTNH, cache


def parameter_count(c: Any) -> int:
    """What the layers that choose have beside their projections, in closed form."""
    if c.mask.top is None:
        return 0
    one = 2 * c.D * c.N + 2 * c.H * (c.mask.block + 2 * c.H)
    return one * sum(map(c.mask.of_layers, range(c.L)))
