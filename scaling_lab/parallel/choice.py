"""Which blocks of keys the queries choose to see.

A block of queries scores summaries of all blocks before it, one query for all, and
takes the best few; those it sees whole (Native Sparse Attention, Yuan et al. 2025,
section 3.3.2: every key-value head's queries share a choice). `chosen` attends to them.

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

from scaling_lab.parallel.attention import HIDDEN
from scaling_lab.parallel.masks import Mask

Array = jax.Array


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
