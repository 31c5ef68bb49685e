"""Attention to blocks of keys that were chosen (`choice`), gathered, both ways.

Work and memory are of what is seen and not of the square. Scores of some blocks of
queries exist at a time; going backwards they are made once more, and what was found
for the chosen keys is added where these rest.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.parallel import flash
from scaling_lab.parallel.attention import HIDDEN, RESIDUAL, dense
from scaling_lab.parallel.equations import wide_product
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: Queries whose blocks are gathered at a time: more leave a processor's cache.
QUERIES = 128


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    """`attention.dense` under a mask with picks, on gathered blocks alone.

    Where a pick is of one query (decoding) this is `attention.dense`.
    """
    assert mask.picks_BKQC is not None and mask.picked is not None
    if mask.picked[0] == 1 or not mask.ordered:
        return dense(q_BTNH, k_BSKH, v_BSKU, mask)
    return _attend(q_BTNH, k_BSKH, v_BSKU, mask)


@jax.custom_vjp
def _attend(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    return _forward(q_BTNH, k_BSKH, v_BSKU, mask)[0]


def _forward(q_BTNH, k_BSKH, v_BSKU, mask):
    queries, keys = _cut(q_BTNH, k_BSKH, v_BSKU, mask)

    def see(_: Any, part: Any) -> Any:
        scores_XBKGTS, (_, v_XBKSU) = _scores(part, keys)
        log_sum_XBKGT = jax.nn.logsumexp(scores_XBKGTS, -1)
        share_XBKGTS = jnp.exp(scores_XBKGTS - log_sum_XBKGT[..., None])
        narrow_XBKGTS = share_XBKGTS.astype(v_XBKSU.dtype)
        out_XBKGTU = wide_product("XBKGTS,XBKSU->XBKGTU", narrow_XBKGTS, v_XBKSU)
        return None, (out_XBKGTU.astype(q_BTNH.dtype), log_sum_XBKGT)

    _, (out, log_sum) = jax.lax.scan(see, None, queries)
    out_BTNU = checkpoint_name(_joined(out), RESIDUAL)
    log_sum = checkpoint_name(log_sum, RESIDUAL)
    return out_BTNU, (q_BTNH, k_BSKH, v_BSKU, mask, out_BTNU, log_sum)


def _backward(residuals, d_BTNU):
    q_BTNH, k_BSKH, v_BSKU, mask, out_BTNU, log_sum = residuals
    queries, keys = _cut(q_BTNH, k_BSKH, v_BSKU, mask)
    delta_BTN1 = rearrange(flash.delta(out_BTNU, d_BTNU), "b n t -> b t n 1")
    parts = {
        **queries,
        "d": _parts(d_BTNU, queries["q"]),
        "delta": _parts(delta_BTN1, queries["q"])[..., 0],
        "log_sum": log_sum,
    }

    def see(found: Any, part: Any) -> Any:
        scores_XBKGTS, (k_XBKSH, v_XBKSU) = _scores(part, keys)
        share_XBKGTS = jnp.exp(scores_XBKGTS - part["log_sum"][..., None])
        narrow_XBKGTS = share_XBKGTS.astype(v_XBKSU.dtype)
        dv_XBKSU = wide_product("XBKGTS,XBKGTU->XBKSU", narrow_XBKGTS, part["d"])
        d_XBKGTS = wide_product("XBKGTU,XBKSU->XBKGTS", part["d"], v_XBKSU)
        d_XBKGTS = share_XBKGTS * (d_XBKGTS - part["delta"][..., None])
        d_XBKGTS = d_XBKGTS.astype(q_BTNH.dtype)
        dq_XBKGTH = wide_product("XBKGTS,XBKSH->XBKGTH", d_XBKGTS, k_XBKSH)
        dk_XBKSH = wide_product("XBKGTS,XBKGTH->XBKSH", d_XBKGTS, part["q"])
        dk, dv = (
            _returned(blocks, new, part["picks"])
            for blocks, new in zip(found, (dk_XBKSH, dv_XBKSU), strict=True)
        )
        return (dk, dv), dq_XBKGTH

    zeros = tuple(jnp.zeros(keys[x].shape, jnp.float32) for x in "kv")
    (dk, dv), dq = jax.lax.scan(see, zeros, parts)
    dq_BTNH = _joined(dq) * q_BTNH.shape[-1] ** -0.5
    dk_BSKH, dv_BSKU = (rearrange(a, "b k s i h -> b (s i) k h") for a in (dk, dv))
    found = zip((dq_BTNH, dk_BSKH, dv_BSKU), (q_BTNH, k_BSKH, v_BSKU), strict=True)
    return (*(gradient.astype(array.dtype) for gradient, array in found), None)


_attend.defvjp(_forward, _backward)


def _cut(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> tuple[Any, Any]:
    """Queries in parts that are worked on together, and keys in blocks.

    A part is of some (X) blocks of queries; the parts' number comes first.
    """
    assert mask.picks_BKQC is not None and mask.picked is not None
    (rows, block), groups = mask.picked, k_BSKH.shape[2]
    count = mask.picks_BKQC.shape[2]
    own = max(
        n
        for n in range(1, count + 1)
        if count % n == 0 and n * rows <= max(QUERIES, rows)
    )
    queries = {
        "q": rearrange(
            q_BTNH * q_BTNH.shape[-1] ** -0.5,
            "b (m x t) (k g) h -> m x b k g t h",
            x=own,
            t=rows,
            k=groups,
        ),
        "picks": rearrange(mask.picks_BKQC, "b k (m x) c -> m x b k c", x=own),
    }
    keys = {
        "k": rearrange(k_BSKH, "b (s i) k h -> b k s i h", i=block),
        "v": rearrange(v_BSKU, "b (s i) k u -> b k s i u", i=block),
    }
    told = {"at": (mask.q_positions_BT, mask.k_positions_BS)}
    if mask.q_segments_BT is not None and mask.k_segments_BS is not None:
        told["document"] = (mask.q_segments_BT, mask.k_segments_BS)
    for name, (of_q, of_k) in told.items():
        queries[name] = rearrange(of_q, "b (m x t) -> m x b 1 t 1", x=own, t=rows)
        keys[name] = rearrange(of_k, "b (s i) -> b 1 s i 1", i=block)
    return queries, keys


def _parts(a_BTNH: Array, like: Array) -> Array:
    """Something of queries in the parts that these are in."""
    x, k, t = (like.shape[dim] for dim in (1, 3, 5))
    return rearrange(a_BTNH, "b (m x t) (k g) h -> m x b k g t h", x=x, k=k, t=t)


def _joined(parts: Array) -> Array:
    return rearrange(parts, "m x b k g t h -> b (m x t) (k g) h")


def _scores(part: Any, keys: Any) -> tuple[Array, tuple[Array, Array]]:
    """Scores of a part's queries with the keys they picked; those keys and values."""
    picks_XBKC = part["picks"]
    k_XBKSH, v_XBKSU = (_gathered(keys[x], picks_XBKC) for x in "kv")
    scores_XBKGTS = wide_product("XBKGTH,XBKSH->XBKGTS", part["q"], k_XBKSH)
    there_XBKS = jnp.repeat(picks_XBKC >= 0, keys["k"].shape[3], axis=-1)
    seen_XBKTS = there_XBKS[:, :, :, None] & (
        part["at"] >= _of_picked(keys["at"], picks_XBKC)
    )
    if "document" in part:
        seen_XBKTS &= part["document"] == _of_picked(keys["document"], picks_XBKC)
    # The own block is always picked, so every query sees itself.
    scores_XBKGTS = jnp.where(seen_XBKTS[:, :, :, None], scores_XBKGTS, HIDDEN)
    return scores_XBKGTS, (k_XBKSH, v_XBKSU)


def _index(picks_XBKC: Array) -> Array:
    return rearrange(jnp.maximum(picks_XBKC, 0), "x b k c -> b k (x c)")


def _gathered(blocks_BKSIH: Array, picks_XBKC: Array) -> Array:
    """Picked blocks one behind the other, with whatever stands where there is none."""
    index_BKS11 = _index(picks_XBKC)[..., None, None]
    found = jnp.take_along_axis(blocks_BKSIH, index_BKS11, axis=2)
    count = picks_XBKC.shape[-1]
    return rearrange(found, "b k (x c) i h -> x b k (c i) h", c=count)


def _of_picked(told_B1SI1: Array, picks_XBKC: Array) -> Array:
    """What a mask tells of the picked blocks' keys, for scores of dims XBKTS."""
    heads = picks_XBKC.shape[2]
    return _gathered(jnp.repeat(told_B1SI1, heads, 1), picks_XBKC)[..., 0][
        :, :, :, None
    ]


def _returned(blocks_BKSIH: Array, new_XBKSH: Array, picks_XBKC: Array) -> Array:
    """Blocks with what was found for the picked ones added to them."""
    count = picks_XBKC.shape[-1]
    new = rearrange(new_XBKSH, "x b k (c i) h -> b k (x c) i h", c=count)
    add = jax.vmap(jax.vmap(lambda blocks, index, own: blocks.at[index].add(own)))
    return add(blocks_BKSIH, _index(picks_XBKC), new)
