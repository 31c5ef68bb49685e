"""As many places for every expert, tokens that find none left out.

GShard's form (Lepikhin et al. 2020, section 3.2): one-hot products put tokens in places
and take them back, and every shape is known. A group is one sequence, whatever the
layout, and first choices are placed before second ones, so what is dropped does not
depend on where it is computed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from scaling_lab.parallel.experts.products import each, precision
from scaling_lab.parallel.experts.work import Result, Work

Array = jax.Array


def capacity(work: Work) -> Result:
    """Places first, then experts, then back; what is dropped counts as zero."""
    b, t, width = work.h_BTD.shape
    length = work.tokens.length
    put_BTEC, weigh_BTEC, dropped = _placed(work)
    dtype = work.h_BTD.dtype
    exact = precision(work.h_BTD)
    sent_EBCD = jnp.einsum(
        "BTEC,BTD->EBCD", put_BTEC.astype(dtype), work.h_BTD, precision=exact
    )
    if length:  # each holder of positions fills its own places, and computes a part
        sent_EBCD = jax.lax.psum_scatter(
            sent_EBCD, length, scatter_dimension=2, tiled=True
        )
    if work.axis:
        sent_EBCD = jax.lax.all_to_all(sent_EBCD, work.axis, 0, 1, tiled=True)
    sent_EBCD = work.kept(sent_EBCD, "sent")
    shape = sent_EBCD.shape
    made_ECD = each(
        work.expert,
        sent_EBCD.reshape(shape[0], -1, width),
        work.weights,
        work.name,
    )
    out_EBCD = made_ECD.reshape(shape)
    if work.axis:
        out_EBCD = jax.lax.all_to_all(out_EBCD, work.axis, 1, 0, tiled=True)
    if length:
        out_EBCD = jax.lax.all_gather(out_EBCD, length, axis=2, tiled=True)
    out_EBCD = work.kept(out_EBCD, "returned")
    out_BTD = jnp.einsum(
        "BTEC,EBCD->BTD", weigh_BTEC.astype(dtype), out_EBCD, precision=exact
    )
    return Result(out_BTD.reshape(b * t, width), dropped)


def _places(work: Work) -> tuple[int, int]:
    """Tokens an expert takes of one sequence; and that as a multiple of its shards.

    Places that make the multiple stay empty, so that every layout keeps the same.
    """
    shards = math.prod(jax.lax.axis_size(axis) for axis in work.tokens.length)
    length = work.h_BTD.shape[1] * shards
    rows = length * work.choice.expert_TC.shape[1]
    kept = min(math.ceil(work.routing.capacity * rows / work.experts), length)
    return kept, -(-kept // shards) * shards


def _placed(work: Work) -> tuple[Array, Array, Array]:
    """Who has which place: as ones, as weights; and how many rows have none."""
    kept, places = _places(work)
    b, t, _ = work.h_BTD.shape
    choices = work.choice.expert_TC.shape[1]
    shape = (b, t, choices)
    expert_BTC = work.choice.expert_TC.reshape(shape)
    weight_BTC = work.choice.weight_TC.reshape(shape)
    experts_E = jnp.arange(work.experts)
    hit_BCTE = (expert_BTC[..., None] == experts_E[None, None, None]).swapaxes(1, 2)
    count_BCE, before_BCTE = _counted(hit_BCTE, work.tokens.length)
    before_BCE = jnp.cumsum(count_BCE, 1) - count_BCE
    rank_BCTE = before_BCTE + before_BCE[:, :, None]
    kept_BCTE = hit_BCTE & (rank_BCTE < kept)
    slot_BCTE = jnp.where(kept_BCTE, rank_BCTE, places)
    dropped = jnp.sum(hit_BCTE) - jnp.sum(kept_BCTE)
    put_BTEC = jnp.zeros((b, t, work.experts, places), jnp.float32)
    weigh_BTEC = jnp.zeros((b, t, work.experts, places), jnp.float32)
    for choice in range(choices):  # a token's choices are different experts
        one_BTEC = jax.nn.one_hot(slot_BCTE[:, choice], places, dtype=jnp.float32)
        put_BTEC = put_BTEC + one_BTEC
        own_BT = weight_BTC[:, :, choice]
        weigh_BTEC = weigh_BTEC + one_BTEC * own_BT[:, :, None, None]
    return put_BTEC, weigh_BTEC, dropped.astype(jnp.float32)


def _counted(hit_BCTE: Array, length: tuple[str, ...]) -> tuple[Array, Array]:
    """Rows that each choice has for each expert, and of each row how many before it.

    Before it in the row: where positions are divided they stand in zigzag order, so a
    device holds a chunk from the front and the one as far from the back.
    """
    if not length:
        own_BCTE = jnp.cumsum(hit_BCTE, 2, dtype=jnp.int32) - 1
        return jnp.sum(hit_BCTE, 2, dtype=jnp.int32), own_BCTE
    halves = jnp.split(hit_BCTE, 2, 2)
    fronts_ZBCE, backs_ZBCE = (
        jax.lax.all_gather(jnp.sum(half_BCTE, 2, dtype=jnp.int32), length, axis=0)
        for half_BCTE in halves
    )
    every_ZBCE = jnp.concatenate([fronts_ZBCE, backs_ZBCE[::-1]])
    before_ZBCE = jnp.cumsum(every_ZBCE, 0) - every_ZBCE
    place = jax.lax.axis_index(length)
    ranks = [
        jnp.cumsum(half_BCTE, 2, dtype=jnp.int32) - 1 + before_ZBCE[z][:, :, None]
        for half_BCTE, z in zip(
            halves, (place, len(every_ZBCE) - 1 - place), strict=True
        )
    ]
    return jnp.sum(every_ZBCE, 0), jnp.concatenate(ranks, 2)
