"""Embedding lookup: in a whole table, or one divided over its rows or columns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Array = jax.Array


def rows(table_VD: Array, indices_BT: Array) -> Array:
    """``table[indices]``; an index outside the table yields zeros."""
    return table_VD.at[indices_BT].get(mode="fill", fill_value=0)


def sharded_rows(
    table_VD: Array, indices_BT: Array, mesh: Any, row_axes: Any, rows_of: Any
) -> Array:
    """The lookup on each device's own sequences, in its own rows of the table.

    Each device finds the rows it holds, the others contribute zeros, and one sum over
    the axes completes them (Megatron-LM, Shoeybi et al. 2019, section 3). Done by hand
    because XLA's partitioner replicates the gradient's scatter on hybrid meshes.

    Args:
      row_axes: mesh axes of the table's rows, or ``None``.
      rows_of: mesh axes of B and of T.
    """

    def local(table_VD, indices_BT):
        if row_axes is None:
            return rows(table_VD, indices_BT)
        first = jax.lax.axis_index(row_axes) * table_VD.shape[0]
        mine_BT = indices_BT - first
        held_BT = (mine_BT >= 0) & (mine_BT < table_VD.shape[0])
        found_BTD = table_VD[jnp.where(held_BT, mine_BT, 0)]
        return jax.lax.psum(jnp.where(held_BT[..., None], found_BTD, 0), row_axes)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(row_axes, None), PartitionSpec(*rows_of)),
        out_specs=PartitionSpec(*rows_of, None),
    )(table_VD, indices_BT)


#: Rows narrower than this are not worth looking up: half an accelerator's lanes.
NARROWEST = 64


def sharded_columns(
    table_VD: Array, indices_BT: Array, mesh: Any, columns: Any, rows_of: Any
) -> Array:
    """The lookup of everybody's sequences in each device's own columns of the table.

    Indices cross the wires, then what was found; going backwards what was found and no
    gradient of the table: with B·T·D elements on a device instead of V·D, and no table
    is ever whole. It is the all-to-all of DLRM (Naumov et al. 2019, section 3.1).

    Args:
      columns: mesh axes of the table's columns: some of B's, then some of T's.
      rows_of: mesh axes of B and of T.
    """
    dims = [tuple(axis for axis in columns if axis in (own or ())) for own in rows_of]
    crossed = [(dim, axes) for dim, axes in enumerate(dims) if axes]

    def local(table_VD, indices_BT):
        for dim, axes in crossed:
            indices_BT = jax.lax.all_gather(indices_BT, axes, axis=dim, tiled=True)
        found_BTD = rows(table_VD, indices_BT)
        for dim, axes in reversed(crossed):  # the last axes cut the columns finest
            found_BTD = jax.lax.all_to_all(
                found_BTD, axes, split_axis=dim, concat_axis=2, tiled=True
            )
        return found_BTD

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(None, columns), PartitionSpec(*rows_of)),
        out_specs=PartitionSpec(*rows_of, None),
    )(table_VD, indices_BT)
