"""Attention on a GPU in a kernel of our own, which says its normalisers.

cuDNN's kernel takes whole rows in their order and heads of at most 128. This takes what
that does not: a part of a row, whose place only the running device knows, a map of
blocks, chosen blocks, a prefix, and wider heads. Which blocks meet is data, and what is
skipped costs nothing. In Pallas, for Triton, whose code is compiled with the step; the
bodies are in `triton_bodies`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from scaling_lab.parallel import chosen, chunked, flash
from scaling_lab.parallel import triton_bodies as bodies
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: Sides of a block of scores at most, forward and backward, of heads of 128 numbers of
#: 16 bits; what is wider has shorter ones, to fit a multiprocessor.
FORWARD, BACKWARD = (128, 64), (64, 64)
#: The widest head, and the shortest side that Triton multiplies.
WIDEST, SHORTEST = 256, 16
STEPS_AHEAD = 2


class _Call(NamedTuple):
    """One attention, ready for its kernels.

    Attributes:
      plan: what a program must know. meet_QS, whole_QS: which blocks meet, and see all
        of each other. starts: of blocks of queries and of keys, their first places.
      arrays: q_BTNH, k_BSKH, v_BSKU, and what the mask tells: documents of queries and
        of keys, and which keys are of a prefix.
      pairs: of positions that are seen, in all heads and rows.
      interpret: run the kernels without a GPU.
    """

    plan: bodies.Plan
    meet_BKQS: Array
    whole_BKQS: Array
    starts: tuple[Array, Array]
    arrays: tuple[Array, ...]
    pairs: float
    interpret: bool


def suits(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> bool:
    """Whether the kernels have a form for these arrays under this mask."""
    known = mask.ordered or mask.row is not None
    if mask.picks_BKQC is not None:
        known = mask.ordered
    fits = max(q_BTNH.shape[-1], v_BSKU.shape[-1]) <= WIDEST
    sides = _sides(q_BTNH, k_BSKH, v_BSKU, mask, FORWARD)
    return known and fits and 0 not in sides


def forward(
    q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask, *, interpret: bool = False
) -> tuple[Array, Array]:
    """`flash.Kernel.forward`; what has no form here is done by `chunked`."""
    if not suits(q_BTNH, k_BSKH, v_BSKU, mask):
        return chunked.forward(q_BTNH, k_BSKH, v_BSKU, mask)
    call = _call(q_BTNH, k_BSKH, v_BSKU, mask, FORWARD, interpret)
    batch, length, heads, width = q_BTNH.shape
    value = v_BSKU.shape[-1]
    out_BTNU, log_sum_BNT = _run(
        call,
        bodies.forward,
        (),
        ((batch, length, heads, value), (batch, heads, length)),
        bodies.filled(width) + bodies.filled(value),
    )
    return out_BTNU, log_sum_BNT


def backward(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKU: Array,
    mask: Mask,
    log_sum_BNT: Array,
    delta_BNT: Array,
    d_BTNU: Array,
    *,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """`flash.Kernel.backward`; what has no form here is done by `chunked`."""
    rows = (d_BTNU, log_sum_BNT, delta_BNT)
    if not suits(q_BTNH, k_BSKH, v_BSKU, mask):
        log_sums = (log_sum_BNT, delta_BNT, d_BTNU)
        return chunked.backward(q_BTNH, k_BSKH, v_BSKU, mask, *log_sums)
    call = _call(q_BTNH, k_BSKH, v_BSKU, mask, BACKWARD, interpret)
    width, value = map(bodies.filled, (q_BTNH.shape[-1], v_BSKU.shape[-1]))
    run = functools.partial(_run, call)
    (dq_BTNH,) = run(bodies.of_queries, rows, (q_BTNH.shape,), 2 * width + value)
    shapes = (k_BSKH.shape, v_BSKU.shape)
    dk_BSKH, dv_BSKU = run(bodies.of_keys, rows, shapes, 2 * (width + value))
    return dq_BTNH, dk_BSKH, dv_BSKU


KERNEL = flash.Kernel(forward, backward)


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    """`attention.dense` through the kernels, forward and backward."""
    return flash.attend(KERNEL, q_BTNH, k_BSKH, v_BSKU, mask)


def attend_chosen(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    """`attention.dense` under a mask with picks; `chosen` where there is no form."""
    fits = suits(q_BTNH, k_BSKH, v_BSKU, mask)
    return (attend if fits else chosen.attend)(q_BTNH, k_BSKH, v_BSKU, mask)


def _sides(
    q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask, most: tuple[int, int]
) -> tuple[int, int]:
    """Sides of a block of scores, powers of two; 0 where there is none."""

    own = q_BTNH.shape[1]

    def side(length: int, most: int, picked: int) -> int:
        whole = [flash.unbroken(length, own, mask), picked]
        whole += [mask.blocks.size] if mask.blocks else []
        found = math.gcd(most, *whole)  # `most` is a power of two, so this is one too
        return found if found >= SHORTEST else 0

    size = max(q_BTNH.shape[-1], v_BSKU.shape[-1]) * q_BTNH.dtype.itemsize
    wide, wider = size > 2 * 128, size > 4 * 128
    rows, block = mask.picked or (0, 0)
    q_side = side(own, most[0] >> wider, rows)
    return q_side, side(k_BSKH.shape[1], most[1] >> (wide + wider), block)


def _call(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKU: Array,
    mask: Mask,
    most: tuple[int, int],
    interpret: bool,
) -> _Call:
    sides = _sides(q_BTNH, k_BSKH, v_BSKU, mask, most)
    (batch, length, heads, width), groups = q_BTNH.shape, k_BSKH.shape[2]
    told: list[Array] = []
    if mask.q_segments_BT is not None and mask.k_segments_BS is not None:
        told += [mask.q_segments_BT, mask.k_segments_BS]
    documents = bool(told)
    if mask.k_prefix_BS is not None:
        told.append(mask.k_prefix_BS.astype(jnp.int32))
    plan = bodies.Plan(
        *sides,
        heads // groups,
        width,
        v_BSKU.shape[-1],
        width**-0.5,
        mask.causal,
        mask.window,
        documents,
        mask.k_prefix_BS is not None,
        mask.picks_BKQC is not None,
    )
    q_T, k_S = mask.places()
    meet_BKQS = mask.pairs_QS(*sides)[None, None] & _picked_BKQS(mask, sides)
    return _Call(
        plan,
        meet_BKQS,
        meet_BKQS & mask.whole_QS(*sides)[None, None],
        (_starts(q_T, sides[0]), _starts(k_S, sides[1])),
        (q_BTNH, k_BSKH, v_BSKU, *told),
        batch * heads * length * k_BSKH.shape[1] * mask.density(),
        interpret,
    )


def _picked_BKQS(mask: Mask, sides: tuple[int, int]) -> Array:
    """Which blocks the mask's picks let meet."""
    if mask.picks_BKQC is None or mask.picked is None:
        return jnp.ones((1, 1, 1, 1), bool)
    rows, block = mask.picked
    number_S = jnp.arange(mask.k_positions_BS.shape[1] // block)
    seen_BKQS = jnp.any(
        mask.picks_BKQC[..., None] == number_S[None, None, None, None], -2
    )
    seen_BKQS = jnp.repeat(seen_BKQS, rows // sides[0], axis=2)
    return jnp.repeat(seen_BKQS, block // sides[1], axis=3)


def _starts(places: Array, side: int) -> Array:
    return places[::side].astype(jnp.int32)


def _run(
    call: _Call,
    body: Callable[..., None],
    rows: tuple[Array, ...],
    shapes: tuple[tuple[int, ...], ...],
    products: int,
) -> list[Array]:
    """One kernel over all blocks of queries, or of keys, whichever its body is of.

    Args:
      rows: gradient, logarithms and deltas, going backwards.
      shapes: of the results, float32.
      products: numbers multiplied and added for a pair of positions, those that fill
        a width up included.
    """
    plan, (q_BTNH, k_BSKH, *_) = call.plan, call.arrays
    of_keys = body is bodies.of_keys
    meet, whole = (
        jnp.swapaxes(a, 2, 3) if of_keys else a
        for a in (call.meet_BKQS, call.whole_BKQS)
    )
    heads = (k_BSKH if of_keys else q_BTNH).shape[2]
    wide = max(plan.width, plan.value) > 64
    return pl.pallas_call(
        functools.partial(body, plan),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(meet.shape[2], heads, q_BTNH.shape[0]),
        compiler_params=triton.CompilerParams(8 if wide else 4, STEPS_AHEAD),
        metadata={"flops": str(int(2 * products * call.pairs))},
        interpret=call.interpret,
        name=f"flash_{body.__name__}",
    )(*_order(meet, whole), *call.starts, *call.arrays, *rows)


def _order(meet_BKZM: Array, whole_BKZM: Array) -> tuple[Array, Array]:
    """Of each block those it meets, the wholly seen first; how many both are."""
    kinds_BKZM = jnp.where(meet_BKZM, jnp.where(whole_BKZM, 0, 1), 2)
    order_BKZM = jnp.argsort(kinds_BKZM, axis=-1, stable=True).astype(jnp.int32)
    counts = (jnp.sum(whole_BKZM, -1), jnp.sum(meet_BKZM, -1))
    return order_BKZM, jnp.stack(counts, -1).astype(jnp.int32)
