"""Attention on one device, and the same on every device's batch rows and heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
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
    visible_BKGTS = mask.visible_BTS()[:, None, None]
    scores_BKGTS = jnp.where(visible_BKGTS, scores_BKGTS, HIDDEN)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, -1).astype(q_BTNH.dtype)
    out_BTKGH = jnp.einsum(
        "BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH, precision=precision
    )
    return rearrange(out_BTKGH, "b t k g h -> b t (k g) h")


def blockwise(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, block: int = 128
) -> Array:
    """Softmax attention, one block of queries at a time, over the keys it can see.

    Keys that causality or the window hides from a whole block are never scored, which
    halves the work of a causal mask; scores of one block exist at a time. Where the
    order of keys is not known (decoding), this is `dense`.
    """
    t, s, (k, h) = q_BTNH.shape[1], k_BSKH.shape[1], k_BSKH.shape[2:]
    if not (mask.ordered and mask.causal and t == s and t > block):
        return dense(q_BTNH, k_BSKH, v_BSKH, mask)
    # Heads before positions, once, so that every product below is a plain batched one.
    q_BKGTH = rearrange(q_BTNH * h**-0.5, "b t (k g) h -> b k g t h", k=k)
    k_BKSH, v_BKSH = (rearrange(a, "b s k h -> b k s h") for a in (k_BSKH, v_BSKH))
    blocks = []
    for start in range(0, t, block):
        queries = slice(start, min(start + block, t))
        first = 0 if mask.window is None else max(0, start - mask.window + 1)
        keys = slice(first, queries.stop)
        blocks.append(
            _block(
                q_BKGTH[:, :, :, queries],
                k_BKSH[:, :, keys],
                v_BKSH[:, :, keys],
                _part(mask, queries, keys).visible_BTS(),
            )
        )
    out_BKGTH = jnp.concatenate(blocks, 3)
    return rearrange(out_BKGTH, "b k g t h -> b t (k g) h")


def _block(q_BKGTH: Array, k_BKSH: Array, v_BKSH: Array, visible_BTS: Array) -> Array:
    exact = q_BKGTH.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    scores_BKGTS = jnp.einsum(
        "BKGTH,BKSH->BKGTS",
        q_BKGTH,
        k_BKSH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, HIDDEN)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, -1).astype(q_BKGTH.dtype)
    return jnp.einsum("BKGTS,BKSH->BKGTH", weights_BKGTS, v_BKSH, precision=precision)


def _part(mask: Mask, queries: slice, keys: slice) -> Mask:
    def cut(array: Array | None, where: slice) -> Array | None:
        return None if array is None else array[:, where]

    return dataclasses.replace(
        mask,
        q_positions_BT=mask.q_positions_BT[:, queries],
        k_positions_BS=mask.k_positions_BS[:, keys],
        q_segments_BT=cut(mask.q_segments_BT, queries),
        k_segments_BS=cut(mask.k_segments_BS, keys),
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

    def local(q_BTNH, k_BSKH, v_BSKH, mask):
        if q_axes is not None and kv_axes is None:
            k_BSKH, v_BSKH = (
                _own_heads(a, q_BTNH.shape[2], arrays[0].shape[2], q_axes)
                for a in (k_BSKH, v_BSKH)
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
