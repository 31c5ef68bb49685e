"""Attention over a divided sequence by whole rows of fewer heads (Ulysses).

An all-to-all turns divided positions into divided heads, so each device attends over
whole rows with the kernel that one device would use, and another turns the result back
(Jacobs et al. 2023, DeepSpeed Ulysses, sections 3.1 and 3.2). Backward both are made
the other way round. A device sends its own queries, keys and values once, however many
devices there are, where a gather or a ring brings it everybody's keys.

Positions travel in zigzag order and are attended to in the order of the row, so that
the mask is the one of an undivided row: kernels need to know of no places.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab.parallel.attention import Attend
from scaling_lab.parallel.masks import Mask

Array = jax.Array


def attend(
    kernel: Attend, axis: Any, q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask
) -> Array:
    """Every device all positions of its own part of the heads.

    Args:
      kernel: the attention of one device. axis: of the mesh, divided by zigzag; it
        divides N. The arrays and the mask are of one device's positions.
    """
    shards = jax.lax.axis_size(axis)
    k_BSKH, v_BSKU = (sent_heads(a, q_BTNH.shape[2], shards) for a in (k_BSKH, v_BSKU))
    q_BTNH, k_BSKH, v_BSKU = (_of_heads(a, axis) for a in (q_BTNH, k_BSKH, v_BSKU))
    out_BTNU = _apart(kernel(q_BTNH, k_BSKH, v_BSKU, _of_rows(mask, axis)), shards)
    return jax.lax.all_to_all(out_BTNU, axis, split_axis=1, concat_axis=2, tiled=True)


def heads_sent(queries: int, keys: int, shards: int) -> int:
    """How many key-value heads a device sends in all, copies counted.

    Where there are fewer than shards each is copied, so that every shard gets the one
    that its query heads share; where a shard's query heads straddle groups, one each.
    """
    group, own = queries // keys, queries // shards
    if own % group == 0 or group % own == 0:
        return max(keys, shards)
    return queries


def sent_heads(kv_BSKH: Array, queries: int, shards: int) -> Array:
    """Key-value heads in the order in which shards want them; see `heads_sent`."""
    keys = kv_BSKH.shape[2]
    return jnp.repeat(kv_BSKH, heads_sent(queries, keys, shards) // keys, axis=2)


def _of_heads(array: Array, axis: Any) -> Array:
    """All positions, in the order of the row, of this device's part of the heads."""
    found = jax.lax.all_to_all(array, axis, split_axis=2, concat_axis=1, tiled=True)
    return _in_order(found, jax.lax.axis_size(axis))


def _of_rows(mask: Mask, axis: Any) -> Mask:
    """The mask of whole rows."""
    shards = jax.lax.axis_size(axis)

    def whole(a_BT: Array) -> Array:
        return _in_order(jax.lax.all_gather(a_BT, axis, axis=1, tiled=True), shards)

    arrays = {
        field.name: whole(value)
        for field in dataclasses.fields(mask)
        for value in [getattr(mask, field.name)]
        if isinstance(value, jax.Array)
    }
    return dataclasses.replace(mask, **arrays)


def _in_order(array: Array, shards: int) -> Array:
    """Positions from the order of `context.zigzag` to that of the row."""
    batch, length, *rest = array.shape
    chunks = array.reshape(batch, shards, 2, -1, *rest)
    both = jnp.concatenate([chunks[:, :, 0], chunks[:, ::-1, 1]], 1)
    return both.reshape(batch, length, *rest)


def _apart(array: Array, shards: int) -> Array:
    """The inverse of `_in_order`."""
    batch, length, *rest = array.shape
    chunks = array.reshape(batch, 2, shards, -1, *rest)
    both = jnp.stack([chunks[:, 0], chunks[:, 1, ::-1]], 2)
    return both.reshape(batch, length, *rest)
