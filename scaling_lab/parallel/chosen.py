"""Attention to blocks of keys that the queries choose: which, and the work on them.

A block of queries scores summaries of all blocks before it, one query for all, and
takes the best few; those it sees whole (Native Sparse Attention, Yuan et al. 2025,
section 3.3.2: every key-value head's queries share a choice). Chosen blocks are
gathered, so that work and memory are of what is seen and not of the square.

Different from the paper a choice is of a block of queries and not of every one, made by
its first query so that it knows nothing of what comes later, and the blocks right
before a query are in the same softmax instead of a branch of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from scaling_lab.parallel.attention import HIDDEN, dense
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: Queries whose blocks are gathered at a time.
QUERIES = 1024


def summaries(mask: Mask, block: int) -> Mask:
    """The mask of queries over one summary of every block of keys.

    A summary stands where its block ends and is of the document that ends it, so a
    query sees those of its own document's blocks that are complete.
    """
    last = slice(block - 1, None, block)
    segments_BS = mask.k_segments_BS
    return Mask(
        mask.q_positions_BT,
        mask.k_positions_BS[:, last],
        mask.q_segments_BT,
        None if segments_BS is None else segments_BS[:, last],
        stride=block,
    )


class Firsts(NamedTuple):
    """The queries that choose: of every block of queries the first.

    Attributes:
      q_BQNH: themselves. positions_BQ, segments_BQ: where they stand, as in a `Mask`.
      row_Q: the numbers of their blocks. rows: queries that share a choice.
    """

    q_BQNH: Array
    positions_BQ: Array
    segments_BQ: Array | None
    row_Q: Array
    rows: int


def firsts(
    q_BTNH: Array, mask: Mask, block: int, cache: Any = None
) -> tuple[Firsts, Any]:
    """Who chooses for these queries, and the cache with them written.

    Args:
      cache: of earlier positions, with room for the first query of every block; then
        each query has a choice of its own, which its block's first one made.
    """
    if cache is None:
        segments_BT = mask.q_segments_BT
        found = Firsts(
            q_BTNH[:, ::block],
            mask.q_positions_BT[:, ::block],
            None if segments_BT is None else segments_BT[:, ::block],
            jnp.arange(q_BTNH.shape[1] // block),
            block,
        )
        return found, None
    at_T = mask.q_positions_BT[0]
    row_T = at_T // block
    # What is no block's first query is written nowhere.
    to_T = jnp.where(at_T % block == 0, row_T, cache["first_LBSNH"].shape[1])
    held_BSNH = cache["first_LBSNH"].at[:, to_T].set(q_BTNH, mode="drop")
    positions_BT = jnp.broadcast_to((row_T * block)[None], mask.q_positions_BT.shape)
    found = Firsts(held_BSNH[:, row_T], positions_BT, None, row_T, 1)
    return found, {**cache, "first_LBSNH": held_BSNH}


def choose(
    firsts: Firsts, c_BSKH: Array, summaries: Mask, sizes: tuple[int, int], mask: Mask
) -> Mask:
    """The mask with only the blocks seen that each block of queries chooses.

    They are its own, the ones right before it, and of the others the best by the mean
    weight that the first query's heads of a key-value head give their summaries.

    Args:
      c_BSKH: summaries of blocks of keys. summaries: their mask.
      sizes: how many are taken by their weight, and how many right before their own.
    """
    (top, near), (groups, block) = sizes, (c_BSKH.shape[2], summaries.stride)
    assert block is not None
    sees_BQS = dataclasses.replace(
        summaries, q_positions_BT=firsts.positions_BQ, q_segments_BT=firsts.segments_BQ
    ).visible_BTS()
    q_BQKGH = rearrange(firsts.q_BQNH, "b q (k g) h -> b q k g h", k=groups)
    scores_BKGQS = jnp.einsum(
        "BQKGH,BSKH->BKGQS",
        jax.lax.stop_gradient(q_BQKGH) * q_BQKGH.shape[-1] ** -0.5,
        jax.lax.stop_gradient(c_BSKH),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    scores_BKGQS = jnp.where(sees_BQS[:, None, None], scores_BKGQS, HIDDEN)
    weight_BKQS = jax.nn.softmax(scores_BKGQS, -1).sum(2)
    far_QS = jnp.arange(c_BSKH.shape[1])[None] < firsts.row_Q[:, None] - near
    weight_BKQS = jnp.where((sees_BQS & far_QS[None])[:, None], weight_BKQS, -1.0)
    best_BKQC, found_BKQC = jax.lax.top_k(weight_BKQS, min(top, c_BSKH.shape[1]))
    found_BKQC = jnp.where(best_BKQC >= 0, found_BKQC, -1)
    near_QC = firsts.row_Q[:, None] - jnp.arange(near + 1)[None]
    near_BKQC = jnp.broadcast_to(
        jnp.maximum(near_QC, -1)[None, None], (*found_BKQC.shape[:3], near + 1)
    )
    picks_BKQC = jnp.concatenate([near_BKQC, found_BKQC], -1)
    return dataclasses.replace(mask, picks_BKQC=picks_BKQC, picked=(firsts.rows, block))


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    """`attention.dense` under a mask with picks, on gathered blocks alone.

    Where a pick is of one query (decoding) this is `attention.dense`.
    """
    assert mask.picks_BKQC is not None and mask.picked is not None
    rows, block = mask.picked
    if rows == 1 or not mask.ordered:
        return dense(q_BTNH, k_BSKH, v_BSKU, mask)
    groups = k_BSKH.shape[2]
    queries = {
        "q": rearrange(
            q_BTNH * q_BTNH.shape[-1] ** -0.5,
            "b (q t) (k g) h -> q b k g t h",
            t=rows,
            k=groups,
        ),
        "picks": rearrange(mask.picks_BKQC, "b k q c -> q b k c"),
        "mask": _cut(mask, "q", rows),
    }
    keys = {
        "k": rearrange(k_BSKH, "b (s i) k h -> b k s i h", i=block),
        "v": rearrange(v_BSKU, "b (s i) k u -> b k s i u", i=block),
        "mask": _cut(mask, "k", block),
    }
    count = mask.picks_BKQC.shape[2]
    own = max(n for n in range(1, count + 1) if count % n == 0 and n * rows <= QUERIES)
    if own == count:
        out = _see(queries, keys, mask)
    else:
        parts = jax.tree.map(lambda a: a.reshape(-1, own, *a.shape[1:]), queries)
        one = jax.checkpoint(lambda keys, part: _see(part, keys, mask))
        _, out = jax.lax.scan(lambda _, part: (None, one(keys, part)), None, parts)
        out = out.reshape(-1, *out.shape[2:])
    return rearrange(out, "q b k g t u -> b (q t) (k g) u").astype(q_BTNH.dtype)


def _cut(mask: Mask, side: str, size: int) -> dict[str, Array]:
    """What a mask says of queries or of keys, in blocks: of queries their number first.

    A sequence's keys keep their row first, and their blocks are gathered.
    """
    order = "b (z t) -> z b t" if side == "q" else "b (z t) -> b z t"
    found = {"at": getattr(mask, "q_positions_BT" if side == "q" else "k_positions_BS")}
    segments = mask.q_segments_BT if side == "q" else mask.k_segments_BS
    if segments is not None:
        found["document"] = segments
    return {key: rearrange(a, order, t=size) for key, a in found.items()}


def _see(queries: Any, keys: Any, mask: Mask) -> Array:
    """Some blocks of queries on the blocks that each has picked: ``QBKGTU``."""
    q_QBKGTH = queries["q"]
    picks_QBKC = queries["picks"]
    exact = q_QBKGTH.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    k_QBKSH, v_QBKSU = (_gathered(keys[x], picks_QBKC) for x in "kv")
    scores_QBKGTS = jnp.einsum(
        "QBKGTH,QBKSH->QBKGTS",
        q_QBKGTH,
        k_QBKSH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    visible_QBKTS = _visible(queries, keys, mask)
    scores_QBKGTS = jnp.where(visible_QBKTS[:, :, :, None], scores_QBKGTS, HIDDEN)
    weights_QBKGTS = jax.nn.softmax(scores_QBKGTS, -1).astype(q_QBKGTH.dtype)
    return jnp.einsum(
        "QBKGTS,QBKSU->QBKGTU", weights_QBKGTS, v_QBKSU, precision=precision
    )


def _gathered(blocks_BKSIH: Array, picks_QBKC: Array) -> Array:
    """Picked blocks one behind the other, with whatever stands where there is none."""
    index_BKS = rearrange(jnp.maximum(picks_QBKC, 0), "q b k c -> b k (q c)")
    found = jnp.take_along_axis(blocks_BKSIH, index_BKS[..., None, None], axis=2)
    count = picks_QBKC.shape[-1]
    return rearrange(found, "b k (q c) i h -> q b k (c i) h", c=count)


def _visible(queries: Any, keys: Any, mask: Mask) -> Array:
    picks_QBKC = queries["picks"]
    size = keys["k"].shape[3]

    def of_keys(array_BSI: Array) -> Array:
        blocks_BKSI1 = jnp.broadcast_to(
            array_BSI[:, None, :, :, None],
            (array_BSI.shape[0], picks_QBKC.shape[2], *array_BSI.shape[1:], 1),
        )
        return _gathered(blocks_BKSI1, picks_QBKC)[..., 0][:, :, :, None]

    there_QBKC = jnp.repeat(picks_QBKC >= 0, size, axis=-1)
    seen_QBKTS = there_QBKC[:, :, :, None]
    q_QB1T1 = {key: a[:, :, None, :, None] for key, a in queries["mask"].items()}
    if mask.causal:
        seen_QBKTS = seen_QBKTS & (q_QB1T1["at"] >= of_keys(keys["mask"]["at"]))
    if "document" in q_QB1T1:
        same = q_QB1T1["document"] == of_keys(keys["mask"]["document"])
        seen_QBKTS = seen_QBKTS & same
    return seen_QBKTS
