"""What `mosaic`'s kernels do with one block of scores.

Scores stand transposed, keys first, so that all that belongs to a query lies along the
chip's lanes (FlashAttention, Dao et al. 2022, sections 3.1 and B.2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from scaling_lab.parallel.attention import HIDDEN

Array = jax.Array

#: Products of two blocks, named by the dim of each that is summed over.
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_columns = functools.partial(_dot, dimension_numbers=(((1,), (1,)), ((), ())))
_plain = functools.partial(_dot, dimension_numbers=(((1,), (0,)), ((), ())))
_rows = functools.partial(_dot, dimension_numbers=(((0,), (0,)), ((), ())))


class Plan(NamedTuple):
    """Sides of a block of scores, and what the mask says of places.

    Attributes:
      documents, prefix: whether it tells any beside.
    """

    q_block: int
    k_block: int
    causal: bool
    window: int | None
    documents: bool
    prefix: bool

    def told(self, refs: Any) -> tuple[Any, Any]:
        """What the mask tells beside places, and what stands behind it."""
        count = 2 * self.documents + self.prefix
        return refs[:count], refs[count:]


class Meets(NamedTuple):
    """Read before a kernel starts, int32.

    Attributes:
      kinds_QS: 0 where blocks do not meet, 2 where every pair is seen, else 1.
      q_start: place of each block's first query. k_start: of its first key.
    """

    kinds_QS: Any
    q_start: Any
    k_start: Any


def forward(plan: Plan, *refs: Any) -> None:
    """The online softmax of a block of queries, keys passing by."""
    meets, (q, k, v, *rest) = Meets(*refs[:3]), refs[4:]
    told, (out, log_sum, peak, total, sums) = plan.told(rest)
    i, j, last = pl.program_id(2), pl.program_id(3), pl.num_programs(3) - 1

    @pl.when(j == 0)
    def _():
        peak[...] = jnp.full(peak.shape, HIDDEN, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    def step(visible: Array | None) -> None:
        scores_ST = _columns(k[...], q[...])
        if visible is not None:
            scores_ST = jnp.where(visible, scores_ST, HIDDEN)
        higher_1T = jnp.maximum(peak[...], jnp.max(scores_ST, 0, keepdims=True))
        share_ST = jnp.exp(scores_ST - higher_1T)
        if visible is not None:
            share_ST = jnp.where(visible, share_ST, 0.0)
        shrink_1T = jnp.exp(peak[...] - higher_1T)
        total[...] = total[...] * shrink_1T + jnp.sum(share_ST, 0, keepdims=True)
        own_UT = _rows(v[...], share_ST.astype(v.dtype))
        sums[...] = sums[...] * shrink_1T + own_UT
        peak[...] = higher_1T

    _if_met(plan, meets, (i, j), told, step)

    @pl.when(j == last)
    def _():
        some_1T = jnp.where(total[...] > 0, total[...], 1.0)
        out[...] = (sums[...] / some_1T).T.astype(out.dtype)
        found_1T = peak[...] + jnp.log(some_1T)
        log_sum[...] = jnp.where(total[...] > 0, found_1T, HIDDEN)


def of_queries(plan: Plan, *refs: Any) -> None:
    """The gradient of a block of queries, keys passing by."""
    meets, (q, k, v, d, log_sum, delta, *rest) = Meets(*refs[:3]), refs[4:]
    told, (out, sums) = plan.told(rest)
    i, j, last = pl.program_id(2), pl.program_id(3), pl.num_programs(3) - 1

    @pl.when(j == 0)
    def _():
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    def step(visible: Array | None) -> None:
        _, d_ST = _scores_back(q, k, v, d, log_sum, delta, visible)
        sums[...] += _rows(d_ST.astype(k.dtype), k[...])

    _if_met(plan, meets, (i, j), told, step)

    @pl.when(j == last)
    def _():
        out[...] = sums[...].astype(out.dtype)


def of_keys(plan: Plan, *refs: Any) -> None:
    """The gradients of a block of keys and values, queries of its group passing by."""
    meets, (q, k, v, d, log_sum, delta, *rest) = Meets(*refs[:3]), refs[4:]
    told, (dk, dv, k_sums, v_sums) = plan.told(rest)
    j, head, i = (pl.program_id(n) for n in (2, 3, 4))
    last = (head == pl.num_programs(3) - 1) & (i == pl.num_programs(4) - 1)

    @pl.when((head == 0) & (i == 0))
    def _():
        k_sums[...] = jnp.zeros(k_sums.shape, jnp.float32)
        v_sums[...] = jnp.zeros(v_sums.shape, jnp.float32)

    def step(visible: Array | None) -> None:
        share_ST, d_ST = _scores_back(q, k, v, d, log_sum, delta, visible)
        v_sums[...] += _plain(share_ST.astype(d.dtype), d[...])
        k_sums[...] += _plain(d_ST.astype(q.dtype), q[...])

    _if_met(plan, meets, (i, j), told, step)

    @pl.when(last)
    def _():
        dk[...] = k_sums[...].astype(dk.dtype)
        dv[...] = v_sums[...].astype(dv.dtype)


def _scores_back(q, k, v, d, log_sum, delta, visible) -> tuple[Array, Array]:
    """Softmax's shares, made again, and the gradient of the scores."""
    share_ST = jnp.exp(_columns(k[...], q[...]) - log_sum[...])
    if visible is not None:
        share_ST = jnp.where(visible, share_ST, 0.0)
    return share_ST, share_ST * (_columns(v[...], d[...]) - delta[...])


def _if_met(
    plan: Plan,
    meets: Meets,
    block: tuple[Array, Array],
    told: Any,
    step: Callable[[Array | None], None],
) -> None:
    """Runs a step where two blocks meet; with a mask where some pairs are hidden."""
    i, j = block
    kind = meets.kinds_QS[i, j]

    @pl.when(kind == 2)
    def _():
        step(None)

    @pl.when(kind == 1)
    def _():
        shape = (plan.k_block, plan.q_block)
        k_ST = meets.k_start[j] + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        q_ST = meets.q_start[i] + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        seen_ST = q_ST >= k_ST if plan.causal else jnp.full(shape, True)
        if plan.window is not None:
            seen_ST &= q_ST - k_ST < plan.window
        if plan.prefix:
            seen_ST |= told[-1][...] > 0
        if plan.documents:
            q_document, k_document = told[:2]
            seen_ST &= k_document[...] == q_document[...]
        step(seen_ST)
