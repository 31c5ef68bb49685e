"""Attention on a TPU in a kernel of our own, which says its normalisers.

What `splash` does for a whole row this does for a part of one, whose place in the row
only the running device knows: which blocks meet is data, read before the kernel starts,
and what is skipped is not fetched either. The bodies are in `mosaic_bodies`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from scaling_lab.parallel import chunked, flash
from scaling_lab.parallel import mosaic_bodies as bodies
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: What a block's sides are multiples of, the chip's lanes, and how wide they may be.
LANES = 128
Q_BLOCK, K_BLOCK = 1024, 512


class _Call(NamedTuple):
    """One attention, ready for its kernels.

    Attributes:
      plan: what a body must know. meets: which blocks meet, read ahead.
      arrays: q_BNTH (scaled), k_BKSH, v_BKSU. told: documents of queries B1T and of
        keys BS1, if the mask has any, and which keys are of a prefix, BS1.
      interpret: run the kernels without a TPU.
      pairs: of positions that are seen, in all heads and rows.
    """

    plan: bodies.Plan
    meets: bodies.Meets
    arrays: tuple[Array, Array, Array]
    told: tuple[Array, ...]
    interpret: bool
    pairs: float


def suits(q_BTNH: Array, k_BSKH: Array, mask: Mask) -> bool:
    """Whether the kernels have a form for these shapes under this mask."""
    known = mask.ordered or mask.row is not None
    return known and 0 not in _sides(q_BTNH, k_BSKH, mask)


def forward(
    q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask, *, interpret: bool = False
) -> tuple[Array, Array]:
    """`flash.Kernel.forward`; what has no form here is done by `chunked`."""
    if not suits(q_BTNH, k_BSKH, mask):
        return chunked.forward(q_BTNH, k_BSKH, v_BSKU, mask)
    call = _call(q_BTNH, k_BSKH, v_BSKU, mask, interpret)
    q_BNTH, width, rows = call.arrays[0], v_BSKU.shape[-1], call.plan.q_block
    out_shape = (
        jax.ShapeDtypeStruct((*q_BNTH.shape[:3], width), jnp.float32),
        jax.ShapeDtypeStruct((*q_BNTH.shape[:2], 1, q_BNTH.shape[2]), jnp.float32),
    )
    out_BNTU, log_sum_BN1T = _run(
        call,
        bodies.forward,
        (),
        out_shape,
        (_of_queries(call, width), _along(call)),
        [(1, rows), (1, rows), (width, rows)],
    )
    return rearrange(out_BNTU, "b n t u -> b t n u"), log_sum_BN1T[:, :, 0]


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
    if not suits(q_BTNH, k_BSKH, mask):
        return chunked.backward(
            q_BTNH, k_BSKH, v_BSKU, mask, log_sum_BNT, delta_BNT, d_BTNU
        )
    call = _call(q_BTNH, k_BSKH, v_BSKU, mask, interpret)
    d_BNTU = rearrange(d_BTNU.astype(q_BTNH.dtype), "b t n u -> b n t u")
    rows = (d_BNTU, log_sum_BNT[:, :, None], delta_BNT[:, :, None])
    q_BNTH, k_BKSH, v_BKSU = call.arrays
    width, value, keys = q_BNTH.shape[-1], v_BKSU.shape[-1], call.plan.k_block

    def like(array: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, jnp.float32)

    (dq_BNTH,) = _run(
        call,
        bodies.of_queries,
        rows,
        (like(q_BNTH),),
        (_of_queries(call, width),),
        [(call.plan.q_block, width)],
    )
    dk_BKSH, dv_BKSU = _run(
        call,
        bodies.of_keys,
        rows,
        (like(k_BKSH), like(v_BKSU)),
        (_of_keys(call, width, True), _of_keys(call, value, True)),
        [(keys, width), (keys, value)],
        keys_first=True,
    )
    dq_BTNH = rearrange(dq_BNTH, "b n t h -> b t n h") * width**-0.5
    dk_BSKH, dv_BSKU = (rearrange(a, "b k s h -> b s k h") for a in (dk_BKSH, dv_BKSU))
    return dq_BTNH, dk_BSKH, dv_BSKU


KERNEL = flash.Kernel(forward, backward)


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask) -> Array:
    """`attention.dense` through the kernels, forward and backward."""
    return flash.attend(KERNEL, q_BTNH, k_BSKH, v_BSKU, mask)


def _sides(q_BTNH: Array, k_BSKH: Array, mask: Mask) -> tuple[int, int]:
    """Sides of a block of scores, within one of the map; 0 where there is none."""

    def side(array: Array, most: int) -> int:
        found = flash.block(array.shape[1], q_BTNH.shape[1], mask, most, LANES)
        whole = not (found and mask.blocks) or mask.blocks.size % found == 0
        return found if whole else 0

    return side(q_BTNH, Q_BLOCK), side(k_BSKH, K_BLOCK)


def _call(
    q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask, interpret: bool
) -> _Call:
    sides = _sides(q_BTNH, k_BSKH, mask)
    told: list[Array] = []
    if mask.q_segments_BT is not None and mask.k_segments_BS is not None:
        told += [mask.q_segments_BT[:, None], mask.k_segments_BS[:, :, None]]
    documents, prefix = bool(told), mask.k_prefix_BS is not None
    if mask.k_prefix_BS is not None:
        told.append(mask.k_prefix_BS.astype(jnp.int32)[:, :, None])
    plan = bodies.Plan(*sides, mask.causal, mask.window, documents, prefix)
    meet, whole = mask.pairs_QS(*sides), mask.whole_QS(*sides)
    kinds_QS = jnp.where(meet, jnp.where(whole, 2, 1), 0).astype(jnp.int32)
    q_T, k_S = mask.places()
    starts = (
        a[::side].astype(jnp.int32) for a, side in zip((q_T, k_S), sides, strict=True)
    )
    q_BTNH = q_BTNH * q_BTNH.shape[-1] ** -0.5
    q_BNTH, k_BKSH, v_BKSU = (
        rearrange(a, "b t n h -> b n t h") for a in (q_BTNH, k_BSKH, v_BSKU)
    )
    batch, queries, heads, _ = q_BTNH.shape
    pairs = batch * heads * queries * k_BSKH.shape[1] * mask.density()
    meets = bodies.Meets(kinds_QS, *starts)
    arrays = (q_BNTH, k_BKSH, v_BKSU)
    return _Call(plan, meets, arrays, tuple(told), interpret, pairs)


def _run(
    call: _Call,
    body: Any,
    rows: tuple[Array, ...],
    out_shape: tuple[Any, ...],
    out_specs: tuple[pl.BlockSpec, ...],
    scratch: list[tuple[int, int]],
    keys_first: bool = False,
) -> tuple[Array, ...]:
    """One kernel over all blocks.

    Args:
      rows: gradient, logarithms and deltas, going backwards.
      keys_first: a block of keys stays while blocks of queries pass, those of every
        head that shares it.
    """
    q_BNTH, k_BKSH, v_BKSU = call.arrays
    batch, heads = q_BNTH.shape[:2]
    q_blocks, k_blocks = call.meets.kinds_QS.shape
    grid = (batch, heads, q_blocks, k_blocks)
    if keys_first:
        groups = k_BKSH.shape[1]
        grid = (batch, groups, k_blocks, heads // groups, q_blocks)
    width, value = q_BNTH.shape[-1], v_BKSU.shape[-1]
    in_specs = [
        _of_queries(call, width, keys_first),
        _of_keys(call, width, keys_first),
        _of_keys(call, value, keys_first),
    ]
    if rows:
        along = _along(call, keys_first)
        in_specs += [_of_queries(call, value, keys_first), along, along]
    in_specs += _of_told(call, keys_first)
    held = _held(call.meets.kinds_QS.T if keys_first else call.meets.kinds_QS)
    products = {bodies.forward: width + value, bodies.of_queries: 2 * width + value}
    flops = 2 * call.pairs * products.get(body, 2 * (width + value))
    moved = sum(a.size * a.dtype.itemsize for a in (*call.arrays, *rows))
    return pl.pallas_call(
        functools.partial(body, call.plan),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        cost_estimate=pl.CostEstimate(
            flops=int(flops), transcendentals=int(call.pairs), bytes_accessed=moved
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",) * (len(grid) - 3)
        ),
        interpret=call.interpret,
        name=f"flash_{body.__name__}",
    )(*call.meets, held, *call.arrays, *rows, *call.told)


def _held(kinds_QS: Array) -> Array:
    """The block in memory at each step: the last that met; a skip fetches nothing."""
    steps = jnp.arange(kinds_QS.shape[1], dtype=jnp.int32)
    last_QS = jax.lax.cummax(jnp.where(kinds_QS > 0, steps[None], -1), axis=1)
    first_Q1 = jnp.argmax(kinds_QS > 0, axis=1).astype(jnp.int32)[:, None]
    return jnp.where(last_QS < 0, first_Q1, last_QS)


# Where a step of the grid finds its blocks. Grids are (row, head, block of queries,
# block of keys), or with keys first (row, key head, block of keys, query head of its
# group, block of queries); what passes is held, by `_held`.


def _of_queries(call: _Call, width: int, keys_first: bool = False) -> pl.BlockSpec:
    group = call.arrays[0].shape[1] // call.arrays[1].shape[1]

    def index(b, n, i, j, *rest):
        if not keys_first:
            return b, n, i, 0
        q, _, _, _, held = rest
        return b, n * group + j, held[i, q], 0

    return pl.BlockSpec((None, None, call.plan.q_block, width), index)


def _along(call: _Call, keys_first: bool = False) -> pl.BlockSpec:
    group = call.arrays[0].shape[1] // call.arrays[1].shape[1]

    def index(b, n, i, j, *rest):
        if not keys_first:
            return b, n, 0, i
        q, _, _, _, held = rest
        return b, n * group + j, 0, held[i, q]

    return pl.BlockSpec((None, None, 1, call.plan.q_block), index)


def _of_keys(call: _Call, width: int, keys_first: bool) -> pl.BlockSpec:
    group = call.arrays[0].shape[1] // call.arrays[1].shape[1]

    def index(b, n, i, j, *rest):
        if keys_first:
            return b, n, i, 0
        held = rest[-1]
        return b, n // group, held[i, j], 0

    return pl.BlockSpec((None, None, call.plan.k_block, width), index)


def _of_told(call: _Call, keys_first: bool) -> list[pl.BlockSpec]:
    def queries(b, n, i, j, *rest):
        return (b, 0, rest[-1][i, rest[0]]) if keys_first else (b, 0, i)

    def keys(b, n, i, j, *rest):
        return (b, i, 0) if keys_first else (b, rest[-1][i, j], 0)

    of_queries = pl.BlockSpec((None, 1, call.plan.q_block), queries)
    of_keys = pl.BlockSpec((None, call.plan.k_block, 1), keys)
    documents = [of_queries, of_keys] if call.plan.documents else []
    return documents + ([of_keys] if call.plan.prefix else [])
