"""What a program of `triton`'s attention does: one block of queries, or of keys.

A program is told which blocks it meets, first those whose every pair is seen, then
those that need a mask, and goes over no others (FlashAttention-2, Dao 2023, section
3.1). Dims that are no power of two are filled up with zeros, which add nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from scaling_lab.parallel.attention import HIDDEN

Array = jax.Array
#: ``(carry, number of the other block, whether to mask) -> carry``.
Step = Callable[[Any, Any, bool], Any]


class Plan(NamedTuple):
    """What a program knows when it is compiled.

    Attributes:
      q_block, k_block: sides of a block of scores, powers of two.
      group: query heads that share a key-value head.
      width, value: of a head (H, U). scale: of scores.
      causal, window: of the mask. documents, prefix, picks: whether it tells any.
    """

    q_block: int
    k_block: int
    group: int
    width: int
    value: int
    scale: float
    causal: bool
    window: int | None
    documents: bool
    prefix: bool
    picks: bool


class _Refs(NamedTuple):
    """What every program reads, and behind it what it reads or writes of its own.

    Attributes:
      order_BKZM: of each block the blocks it meets, in all rows and heads the same
        where there are no picks. counts_BKZ2: how many of them it sees whole, and how
        many in all.
      q_start_Q, k_start_S: each block's first place in the row.
      q_BTNH, k_BSKH, v_BSKU: the arrays. rest: first what the mask tells, documents of
        queries and of keys, then which keys are of a prefix.
    """

    order_BKZM: Any
    counts_BKZ2: Any
    q_start_Q: Any
    k_start_S: Any
    q_BTNH: Any
    k_BSKH: Any
    v_BSKU: Any
    rest: tuple[Any, ...]


def forward(plan: Plan, *refs: Any) -> None:
    """The online softmax of a block of queries, keys passing by."""
    of = _Refs(*refs[:7], rest=refs[7:])
    *_, out_BTNU, log_sum_BNT = of.rest
    i, n, b = (pl.program_id(dim) for dim in range(3))
    own = i * plan.q_block, plan.q_block
    q_TH = _rows(of.q_BTNH, b, own, n, plan.width)

    def see(carry: Any, j: Any, masked: bool) -> Any:
        peak_T, total_T, sums_TU = carry
        keys = j * plan.k_block, plan.k_block
        k_SH = _rows(of.k_BSKH, b, keys, n // plan.group, plan.width)
        scores_TS = _dot(q_TH, k_SH, trans_b=True) * plan.scale
        visible_TS = _visible(plan, of, b, (i, j)) if masked else None
        if visible_TS is not None:
            scores_TS = jnp.where(visible_TS, scores_TS, HIDDEN)
        higher_T = jnp.maximum(peak_T, jnp.max(scores_TS, 1))
        share_TS = jnp.exp(scores_TS - higher_T[:, None])
        if visible_TS is not None:
            share_TS = jnp.where(visible_TS, share_TS, 0.0)
        shrink_T = jnp.exp(peak_T - higher_T)
        v_SU = _rows(of.v_BSKU, b, keys, n // plan.group, plan.value)
        sums_TU = sums_TU * shrink_T[:, None]
        sums_TU += _dot(share_TS.astype(v_SU.dtype), v_SU)
        return higher_T, total_T * shrink_T + jnp.sum(share_TS, 1), sums_TU

    zeros_T = jnp.zeros(plan.q_block, jnp.float32)
    zeros_TU = jnp.zeros((plan.q_block, filled(plan.value)), jnp.float32)
    own_blocks = _met(plan, of, b, n // plan.group, i)
    nothing = (zeros_T + HIDDEN, zeros_T, zeros_TU)
    peak_T, total_T, sums_TU = _pass(own_blocks, see, nothing)
    some_T = jnp.where(total_T > 0, total_T, 1.0)
    _put(out_BTNU, b, own, n, plan.value, sums_TU / some_T[:, None])
    log_sum_T = jnp.where(total_T > 0, peak_T + jnp.log(some_T), HIDDEN)
    log_sum_BNT[b, n, pl.ds(*own)] = log_sum_T


def of_queries(plan: Plan, *refs: Any) -> None:
    """The gradient of a block of queries, keys passing by."""
    of = _Refs(*refs[:7], rest=refs[7:])
    *_, d_BTNU, log_sum_BNT, delta_BNT, dq_BTNH = of.rest
    i, n, b = (pl.program_id(dim) for dim in range(3))
    own = i * plan.q_block, plan.q_block
    q_TH = _rows(of.q_BTNH, b, own, n, plan.width)
    d_TU = _rows(d_BTNU, b, own, n, plan.value)
    log_sum_T, delta_T = (ref[b, n, pl.ds(*own)] for ref in (log_sum_BNT, delta_BNT))

    def see(sums_TH: Array, j: Any, masked: bool) -> Array:
        keys = j * plan.k_block, plan.k_block
        k_SH = _rows(of.k_BSKH, b, keys, n // plan.group, plan.width)
        v_SU = _rows(of.v_BSKU, b, keys, n // plan.group, plan.value)
        scores_TS = _dot(q_TH, k_SH, trans_b=True) * plan.scale
        share_TS = jnp.exp(scores_TS - log_sum_T[:, None])
        if masked:
            share_TS = jnp.where(_visible(plan, of, b, (i, j)), share_TS, 0.0)
        d_TS = _dot(d_TU, v_SU, trans_b=True) - delta_T[:, None]
        return sums_TH + _dot((share_TS * d_TS).astype(k_SH.dtype), k_SH)

    zeros_TH = jnp.zeros((plan.q_block, filled(plan.width)), jnp.float32)
    sums_TH = _pass(_met(plan, of, b, n // plan.group, i), see, zeros_TH)
    _put(dq_BTNH, b, own, n, plan.width, sums_TH * plan.scale)


def of_keys(plan: Plan, *refs: Any) -> None:
    """The gradients of a block of keys and values, queries of its group passing by."""
    of = _Refs(*refs[:7], rest=refs[7:])
    *_, d_BTNU, log_sum_BNT, delta_BNT, dk_BSKH, dv_BSKU = of.rest
    j, k, b = (pl.program_id(dim) for dim in range(3))
    own = j * plan.k_block, plan.k_block
    k_SH = _rows(of.k_BSKH, b, own, k, plan.width)
    v_SU = _rows(of.v_BSKU, b, own, k, plan.value)

    def see(n: Any, carry: Any, i: Any, masked: bool) -> Any:
        k_sums_SH, v_sums_SU = carry
        queries = i * plan.q_block, plan.q_block
        q_TH = _rows(of.q_BTNH, b, queries, n, plan.width)
        d_TU = _rows(d_BTNU, b, queries, n, plan.value)
        log_sum_T, delta_T = (
            ref[b, n, pl.ds(*queries)] for ref in (log_sum_BNT, delta_BNT)
        )
        scores_ST = _dot(k_SH, q_TH, trans_b=True) * plan.scale
        share_ST = jnp.exp(scores_ST - log_sum_T[None])
        if masked:
            visible_ST = _visible(plan, of, b, (i, j), keys_first=True)
            share_ST = jnp.where(visible_ST, share_ST, 0.0)
        v_sums_SU += _dot(share_ST.astype(d_TU.dtype), d_TU)
        d_ST = _dot(v_SU, d_TU, trans_b=True) - delta_T[None]
        k_sums_SH += _dot((share_ST * d_ST).astype(q_TH.dtype), q_TH)
        return k_sums_SH, v_sums_SU

    own_blocks = _met(plan, of, b, k, j)

    def head(number: Any, carry: Any) -> Any:
        own_head = functools.partial(see, k * plan.group + number)
        return _pass(own_blocks, own_head, carry)

    sums = tuple(
        jnp.zeros((plan.k_block, filled(width)), jnp.float32)
        for width in (plan.width, plan.value)
    )
    k_sums_SH, v_sums_SU = jax.lax.fori_loop(0, plan.group, head, sums)
    _put(dk_BSKH, b, own, k, plan.width, k_sums_SH * plan.scale)
    _put(dv_BSKU, b, own, k, plan.value, v_sums_SU)


def filled(width: int) -> int:
    """The least power of two not below a head's width, nor below Triton's shortest."""
    return max(16, 1 << (width - 1).bit_length())


def _met(plan: Plan, of: _Refs, b: Any, k: Any, block: Any) -> tuple[Any, Any, Any]:
    """Which blocks one meets, by number; how many it sees whole, and in all."""
    at = (b, k, block) if plan.picks else (0, 0, block)

    def other(number: Any) -> Any:
        return of.order_BKZM[(*at, number)]

    return other, of.counts_BKZ2[(*at, 0)], of.counts_BKZ2[(*at, 1)]


def _pass(blocks: tuple[Any, Any, Any], step: Step, carry: Any) -> Any:
    """Goes over the blocks that one meets; those that need no mask first."""
    other, whole, met = blocks

    def go(masked: bool, number: Any, carry: Any) -> Any:
        return step(carry, other(number), masked)

    carry = jax.lax.fori_loop(0, whole, functools.partial(go, False), carry)
    return jax.lax.fori_loop(whole, met, functools.partial(go, True), carry)


def _visible(
    plan: Plan, of: _Refs, b: Any, blocks: tuple[Any, Any], keys_first: bool = False
) -> Array:
    """The pairs of a block of queries and one of keys, in this or the other order."""
    q_place, k_place = (
        pl.ds(block * side, side)
        for block, side in zip(blocks, (plan.q_block, plan.k_block), strict=True)
    )

    def of_queries(told_T: Array) -> Array:
        return told_T[None] if keys_first else told_T[:, None]

    def of_keys(told_S: Array) -> Array:
        return told_S[:, None] if keys_first else told_S[None]

    q_at = of_queries(of.q_start_Q[blocks[0]] + jnp.arange(plan.q_block))
    k_at = of_keys(of.k_start_S[blocks[1]] + jnp.arange(plan.k_block))
    seen = q_at >= k_at if plan.causal else q_at - k_at == q_at - k_at
    if plan.window is not None:
        seen &= q_at - k_at < plan.window
    if plan.prefix:
        prefix = of.rest[2 * plan.documents]
        seen |= of_keys(prefix[b, k_place]) > 0
    if plan.documents:
        q_document, k_document = of.rest[:2]
        seen &= of_queries(q_document[b, q_place]) == of_keys(k_document[b, k_place])
    return seen


def _rows(ref: Any, b: Any, own: tuple[Any, int], head: Any, width: int) -> Array:
    """Some positions of one head, as wide as a power of two."""
    place = ref.at[b, pl.ds(*own), head, pl.ds(0, filled(width))]
    mask = _within(own[1], width)
    return triton.load(place, mask=mask, other=None if mask is None else 0)


def _put(
    ref: Any, b: Any, own: tuple[Any, int], head: Any, width: int, found: Array
) -> None:
    place = ref.at[b, pl.ds(*own), head, pl.ds(0, filled(width))]
    triton.store(place, found.astype(ref.dtype), mask=_within(own[1], width))


def _dot(left: Array, right: Array, **transposed: bool) -> Array:
    """Float32 means float32; sums are float32 always."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return triton.dot(left, right, precision=exact, **transposed)


def _within(rows: int, width: int) -> Array | None:
    """Which columns are there; ``None`` where all are."""
    if filled(width) == width:
        return None
    return jnp.broadcast_to(
        (jnp.arange(filled(width)) < width)[None], (rows, filled(width))
    )
