"""Attention on one device, and the same on every device's batch rows and heads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from scaling_lab.parallel.masks import Mask

Array = jax.Array
Attend = Callable[[Array, Array, Array, Mask], Array]

#: `checkpoint_name` by which a kernel names what its backward pass wants of its forward
#: pass: the result and the normalisers.
RESIDUAL = "attention_residual"
#: What a hidden key scores; finite, so that a row with no visible key stays finite.
HIDDEN = -1e30


def dense(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Array:
    """Softmax attention with every score written out; softmax in float32."""
    k, h = k_BSKH.shape[2:]
    q_BTKGH = rearrange(q_BTNH, "b t (k g) h -> b t k g h", k=k)
    exact = q_BTNH.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    scores_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS",
        q_BTKGH * h**-0.5,
        k_BSKH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scores_BKGTS = jnp.where(mask.visible_BKTS()[:, :, None], scores_BKGTS, HIDDEN)
    shares_BKGTS, sum_BKGT1 = _shares(scores_BKGTS)
    out_BTKGH = jnp.einsum(
        "BKGTS,BSKH->BTKGH",
        shares_BKGTS.astype(q_BTNH.dtype),
        v_BSKH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    sum_BTKG1 = rearrange(sum_BKGT1, "b k g t 1 -> b t k g 1")
    out_BTKGH = _divided(out_BTKGH, sum_BTKG1, q_BTNH.dtype)
    return rearrange(out_BTKGH, "b t k g h -> b t (k g) h")


def _shares(scores_BKGTS: Array) -> tuple[Array, Array]:
    """Exponentiated scores and their sum, by which the product with values is divided.

    Divided after it, not before: the gradient of the division then sums over a head's
    dims and not over keys, and a pass over all scores is spared in both directions.
    """
    peak_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
    shares_BKGTS = jnp.exp(scores_BKGTS - peak_BKGT1)
    return shares_BKGTS, shares_BKGTS.sum(-1, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _divided(out: Array, sums: Array, dtype: Any) -> Array:
    """The quotient, whose gradient is written in itself and not in what was divided.

    So a policy that keeps attention's result, under `RESIDUAL`, spares the product with
    values its second time; the quotient's own rule would ask for that product again.
    """
    return (out / sums).astype(dtype)


@_divided.defjvp
def _divided_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (out, sums), (d_out, d_sums) = primals, tangents
    # Not by calling `_divided`: policies do not look for names inside a call.
    found = checkpoint_name((out / sums).astype(dtype), RESIDUAL)
    change = (d_out - found.astype(d_out.dtype) * d_sums) / sums
    return found, change.astype(dtype)


def blockwise(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, block: int = 128
) -> Array:
    """Softmax attention, one block of queries at a time, over the keys it can see.

    Keys that causality, the window or the map of blocks hides from a whole block are
    never scored, which halves the work of a causal mask; scores of one block exist at a
    time. Where the order of keys is not known (decoding) or the mask has a prefix, this
    is `dense`.
    """
    t, s, (k, h) = q_BTNH.shape[1], k_BSKH.shape[1], k_BSKH.shape[2:]
    square = mask.ordered and mask.causal and t == s
    if not square or mask.k_prefix_BS is not None:
        return dense(q_BTNH, k_BSKH, v_BSKH, mask)
    # Heads before positions, once, so that every product below is a plain batched one.
    q_BKGTH = rearrange(q_BTNH * h**-0.5, "b t (k g) h -> b k g t h", k=k)
    k_BKSH, v_BKSH = (rearrange(a, "b s k h -> b k s h") for a in (k_BSKH, v_BSKH))
    blocks = []
    for start in range(0, t, block):
        queries = slice(start, min(start + block, t))
        keys = _seen(mask, queries)
        blocks.append(
            _block(
                q_BKGTH[:, :, :, queries],
                _joined(k_BKSH, keys, 2),
                _joined(v_BKSH, keys, 2),
                _part(mask, queries, keys).visible_BTS(),
            )
        )
    out_BKGTH = jnp.concatenate(blocks, 3)
    return rearrange(out_BKGTH, "b k g t h -> b t (k g) h")


def _block(q_BKGTH: Array, k_BKSH: Array, v_BKSH: Array, visible_BTS: Array) -> Array:
    g, exact = q_BKGTH.shape[2], q_BKGTH.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    product = functools.partial(
        jnp.einsum, precision=precision, preferred_element_type=jnp.float32
    )
    # A group's queries are rows of one matrix, R = G T: no copy on either side.
    q_BKRH = rearrange(q_BKGTH, "b k g t h -> b k (g t) h")
    scores_BKRS = product("BKRH,BKSH->BKRS", q_BKRH, k_BKSH)
    scores_BKGTS = rearrange(scores_BKRS, "b k (g t) s -> b k g t s", g=g)
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, HIDDEN)
    shares_BKGTS, sum_BKGT1 = _shares(scores_BKGTS)
    shares_BKRS = rearrange(shares_BKGTS, "b k g t s -> b k (g t) s")
    out_BKRH = product("BKRS,BKSH->BKRH", shares_BKRS.astype(q_BKGTH.dtype), v_BKSH)
    out_BKGTH = rearrange(out_BKRH, "b k (g t) h -> b k g t h", g=g)
    return _divided(out_BKGTH, sum_BKGT1, q_BKGTH.dtype)


def _seen(mask: Mask, queries: slice) -> list[slice]:
    """Runs of keys that some of these queries may see."""
    back = queries.stop if mask.window is None else mask.window - 1
    first = max(0, queries.start - back)
    if mask.blocks is None:
        return [slice(first, queries.stop)]
    size = mask.blocks.size
    rows = mask.blocks.seen[queries.start // size : -(-queries.stop // size)]
    runs: list[slice] = []
    for block in sorted({block for row in rows for block in row}):
        start, stop = max(first, block * size), min(queries.stop, (block + 1) * size)
        if runs and runs[-1].stop == start:
            runs[-1] = slice(runs[-1].start, stop)
        elif start < stop:
            runs.append(slice(start, stop))
    return runs


def _joined(array: Array, runs: list[slice], axis: int) -> Array:
    parts = [
        jax.lax.slice_in_dim(array, run.start, run.stop, axis=axis) for run in runs
    ]
    return jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]


def _part(mask: Mask, queries: slice, keys: list[slice]) -> Mask:
    q_T, k_S = (place[None] for place in mask.places())

    def of_keys(array: Array | None) -> Array | None:
        return None if array is None else _joined(array, keys, 1)

    segments_BT = mask.q_segments_BT
    return dataclasses.replace(
        mask,
        q_positions_BT=mask.q_positions_BT[:, queries],
        k_positions_BS=of_keys(mask.k_positions_BS),
        q_segments_BT=None if segments_BT is None else segments_BT[:, queries],
        k_segments_BS=of_keys(mask.k_segments_BS),
        q_places_BT=q_T[:, queries],
        k_places_BS=of_keys(k_S),
    )


def by_heads(
    attend: Attend,
    arrays: tuple[Array, Array, Array],
    mask: Mask,
    mesh: Any,
    rows: tuple[Any, Any],
    heads: tuple[Any, Any],
) -> Array:
    """`attend` on each device's own rows and query heads.

    Args:
      rows: mesh axes of dims B and T. heads: mesh axes of N and of K. Where K has none
        and N has some, the axis is wider than K: every device holds all key-value heads
        and takes the one its query heads share, since constraining K instead costs a
        full rematerialisation.
    """
    q_axes, kv_axes = heads
    q_spec = PartitionSpec(*rows, q_axes, None)
    kv_spec = PartitionSpec(*rows, kv_axes, None)
    mask_spec = jax.tree.map(lambda _: PartitionSpec(*rows), mask)
    if mask.picks_BKQC is not None:
        own = PartitionSpec(rows[0], kv_axes)
        mask_spec = dataclasses.replace(mask_spec, picks_BKQC=own)

    def local(q_BTNH, k_BSKH, v_BSKH, mask):
        if q_axes is not None and kv_axes is None:
            k_BSKH, v_BSKH = (
                _own_heads(a, q_BTNH.shape[2], arrays[0].shape[2], q_axes)
                for a in (k_BSKH, v_BSKH)
            )
            if mask.picks_BKQC is not None:
                picks_BQKC = jnp.swapaxes(mask.picks_BKQC, 1, 2)
                picks_BQKC = _own_heads(
                    picks_BQKC, q_BTNH.shape[2], arrays[0].shape[2], q_axes
                )
                mask = dataclasses.replace(
                    mask, picks_BKQC=jnp.swapaxes(picks_BQKC, 1, 2)
                )
        return attend(q_BTNH, k_BSKH, v_BSKH, mask)

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(q_spec, kv_spec, kv_spec, mask_spec),
        out_specs=q_spec,
        check_vma=False,
    )
    return spread(*arrays, mask)


def _own_heads(kv_BSKH: Array, own_queries: int, queries: int, axes: Any) -> Array:
    """The key-value heads that this device's query heads share."""
    group = queries // kv_BSKH.shape[2]
    start = jax.lax.axis_index(axes) * own_queries
    if own_queries % group and group % own_queries:
        # A device's queries straddle groups: one key-value head for each of them.
        return jnp.take(kv_BSKH, (start + jnp.arange(own_queries)) // group, axis=2)
    return jax.lax.dynamic_slice_in_dim(
        kv_BSKH, start // group, max(1, own_queries // group), axis=2
    )
