"""Attention in XLA's own operations, one block of scores at a time, skipping blocks.

It runs on every backend, in memory that grows with the length and in time that falls
with the mask: a block of pairs that all are hidden is not worked on.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from scaling_lab.parallel import flash
from scaling_lab.parallel.attention import HIDDEN
from scaling_lab.parallel.equations import wide_product
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: Queries and keys of one block, at most.
BLOCK = 256


class _Cut(NamedTuple):
    """The arrays cut into blocks, the block's number first.

    Attributes:
      queries: a tree of what belongs to queries; keys: to keys.
      pairs_QS: which blocks meet. mask: without its arrays.
    """

    queries: Any
    keys: Any
    pairs_QS: Array
    mask: Mask

    def visible(self, queries: Any, keys: Any) -> Array:
        """The pairs of two blocks, for scores of dims BKGTS."""
        mask = dataclasses.replace(self.mask, **queries["mask"], **keys["mask"])
        return mask.visible_BTS()[:, None, None]


def forward(
    q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask
) -> tuple[Array, Array]:
    """`flash.Kernel.forward`: the online softmax of one block of queries at a time."""
    cut = _cut(q_BTNH, k_BSKH, v_BSKU, mask)

    def see(queries: Any, keys: Any, carry: Any) -> Any:
        peak_BKGT, sum_BKGT, out_BKGTU = carry
        scores_BKGTS = _scores(queries["q"], keys["k"])
        seen_B11TS = cut.visible(queries, keys)
        scores_BKGTS = jnp.where(seen_B11TS, scores_BKGTS, HIDDEN)
        higher_BKGT = jnp.maximum(peak_BKGT, scores_BKGTS.max(-1))
        share_BKGTS = jnp.exp(scores_BKGTS - higher_BKGT[..., None])
        share_BKGTS = jnp.where(seen_B11TS, share_BKGTS, 0.0)
        shrink_BKGT = jnp.exp(peak_BKGT - higher_BKGT)
        narrow_BKGTS = share_BKGTS.astype(keys["v"].dtype)
        own_BKGTU = wide_product("BKGTS,BKSU->BKGTU", narrow_BKGTS, keys["v"])
        sum_BKGT = sum_BKGT * shrink_BKGT + share_BKGTS.sum(-1)
        return higher_BKGT, sum_BKGT, out_BKGTU * shrink_BKGT[..., None] + own_BKGTU

    def row(_: None, block: Any) -> Any:
        queries, meets_S = block
        zeros_BKGT = jnp.zeros(queries["q"].shape[:-1], jnp.float32)
        out_BKGTU = jnp.zeros((*zeros_BKGT.shape, v_BSKU.shape[-1]), jnp.float32)

        def column(carry: Any, block: Any) -> Any:
            keys, meets = block
            return jax.lax.cond(
                meets, lambda: see(queries, keys, carry), lambda: carry
            ), None

        (peak, total, out), _ = jax.lax.scan(
            column, (zeros_BKGT + HIDDEN, zeros_BKGT, out_BKGTU), (cut.keys, meets_S)
        )
        some = jnp.where(total > 0, total, 1.0)
        log_sum = jnp.where(total > 0, peak + jnp.log(some), HIDDEN)
        return None, (out / some[..., None], log_sum)

    _, (out, log_sum) = jax.lax.scan(row, None, (cut.queries, cut.pairs_QS))
    return (
        rearrange(out, "z b k g t u -> b (z t) (k g) u"),
        rearrange(log_sum, "z b k g t -> b (k g) (z t)"),
    )


def backward(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKU: Array,
    mask: Mask,
    log_sum_BNT: Array,
    delta_BNT: Array,
    d_BTNU: Array,
) -> tuple[Array, Array, Array]:
    """`flash.Kernel.backward`: every block of scores is made once more."""
    cut = _cut(q_BTNH, k_BSKH, v_BSKU, mask)
    block, groups = cut.queries["q"].shape[4], k_BSKH.shape[2]
    rows = {
        "log_sum": _rows(log_sum_BNT, block, groups),
        "delta": _rows(delta_BNT, block, groups),
        "d": _queries(d_BTNU, block, groups),
    }

    def see(queries: Any, keys: Any, dq: Array, dk: Array, dv: Array) -> Any:
        scores_BKGTS = _scores(queries["q"], keys["k"])
        share_BKGTS = jnp.exp(scores_BKGTS - queries["log_sum"][..., None])
        share_BKGTS = jnp.where(cut.visible(queries, keys), share_BKGTS, 0.0)
        narrow_BKGTS = share_BKGTS.astype(v_BSKU.dtype)
        dv += wide_product("BKGTS,BKGTU->BKSU", narrow_BKGTS, queries["d"])
        d_BKGTS = wide_product("BKGTU,BKSU->BKGTS", queries["d"], keys["v"])
        d_BKGTS = share_BKGTS * (d_BKGTS - queries["delta"][..., None])
        d_BKGTS = d_BKGTS.astype(q_BTNH.dtype)
        dq += wide_product("BKGTS,BKSH->BKGTH", d_BKGTS, keys["k"])
        dk += wide_product("BKGTS,BKGTH->BKSH", d_BKGTS, queries["q"])
        return dq, dk, dv

    def row(carry: Any, block: Any) -> Any:
        queries, meets_S = block

        def column(dq: Array, block: Any) -> Any:
            keys, meets, dk, dv = block
            dq, dk, dv = jax.lax.cond(
                meets,
                lambda: see(queries, keys, dq, dk, dv),
                lambda: (dq, dk, dv),
            )
            return dq, (dk, dv)

        dq = jnp.zeros(queries["q"].shape, jnp.float32)
        dq, carry = jax.lax.scan(column, dq, (cut.keys, meets_S, *carry))
        return carry, dq

    zeros = tuple(jnp.zeros(cut.keys[x].shape, jnp.float32) for x in "kv")
    (dk, dv), dq = jax.lax.scan(row, zeros, (cut.queries | rows, cut.pairs_QS))
    dq_BTNH = rearrange(dq, "z b k g t h -> b (z t) (k g) h")
    dk_BSKH, dv_BSKU = (rearrange(a, "z b k s h -> b (z s) k h") for a in (dk, dv))
    return dq_BTNH * q_BTNH.shape[-1] ** -0.5, dk_BSKH, dv_BSKU


KERNEL = flash.Kernel(forward, backward)


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    """`attention.dense`, in memory that grows with the length."""
    return flash.attend(KERNEL, q_BTNH, k_BSKH, v_BSKU, mask)


def _scores(q_BKGTH: Array, k_BKSH: Array) -> Array:
    return wide_product("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH)


def _cut(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> _Cut:
    groups, width = k_BSKH.shape[2], q_BTNH.shape[-1]
    own = q_BTNH.shape[1]
    blocks = tuple(flash.block(a.shape[1], own, mask, BLOCK) for a in (q_BTNH, k_BSKH))
    known = mask.ordered or mask.row is not None
    counts = (q_BTNH.shape[1] // blocks[0], k_BSKH.shape[1] // blocks[1])
    pairs_QS = mask.pairs_QS(*blocks) if known else jnp.ones(counts, bool)
    if mask.blocks is not None:
        q_T, k_S = mask.places()
        mask = dataclasses.replace(mask, q_places_BT=q_T[None], k_places_BS=k_S[None])
    sides: dict[str, dict[str, Array]] = {"q": {}, "k": {}}
    for field in dataclasses.fields(mask):
        value = getattr(mask, field.name)
        if isinstance(value, jax.Array):
            side = field.name[0]
            size = blocks[side == "k"]
            cut = rearrange(value, "b (z t) -> z b t", t=size)
            sides[side][field.name] = cut
    q_BTNH = q_BTNH * width**-0.5
    keys = {x: _keys(a, blocks[1]) for x, a in (("k", k_BSKH), ("v", v_BSKU))}
    return _Cut(
        {"q": _queries(q_BTNH, blocks[0], groups), "mask": sides["q"]},
        {**keys, "mask": sides["k"]},
        pairs_QS,
        mask,
    )


def _queries(a_BTNH: Array, block: int, groups: int) -> Array:
    return rearrange(a_BTNH, "b (z t) (k g) h -> z b k g t h", t=block, k=groups)


def _keys(a_BSKH: Array, block: int) -> Array:
    return rearrange(a_BSKH, "b (z s) k h -> z b k s h", s=block)


def _rows(a_BNT: Array, block: int, groups: int) -> Array:
    return rearrange(a_BNT, "b (k g) (z t) -> z b k g t", t=block, k=groups)
