"""Rows for experts: copies of tokens in their experts' order, and the way back.

A row is one (token, choice) pair. Every move of rows is a partial permutation, so its
gradient is the move back: a gather, where a plain gather's would be a scatter.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling_lab.parallel.experts.routing import Choice

Array = jax.Array


@jax.custom_vjp
def reorder(x_CD: Array, index_C: Array, back_C: Array) -> Array:
    """Row ``index[i]`` at place i; zeros where that is no row.

    Args:
      back_C: the inverse: where each row went, or no place.
    """
    del back_C
    return _taken(x_CD, index_C)


def _reorder_forward(x_CD, index_C, back_C):
    return _taken(x_CD, index_C), back_C


def _reorder_backward(back_C, d_CD):
    return _taken(d_CD, back_C), None, None


reorder.defvjp(_reorder_forward, _reorder_backward)


def _taken(x_CD: Array, index_C: Array) -> Array:
    return x_CD.at[index_C].get(mode="fill", fill_value=0)


class Order(NamedTuple):
    """Rows in their experts' order, those of no expert left out.

    Attributes:
      order_C: of each row in that order the number of its (token, choice) pair.
      place_TC: of each pair its row; past the last where it has none.
      expert_C: of each row its expert, E where it is none.
      size_E: how many rows each expert has.
    """

    order_C: Array
    place_TC: Array
    expert_C: Array
    size_E: Array


def ordered(expert_TC: Array, experts: int, rows: int) -> Order:
    """The order of a choice's rows.

    Args:
      expert_TC: experts counted from 0; `experts` and more are none.
      rows: the most there can be.
    """
    flat_C = jnp.minimum(expert_TC.reshape(-1), experts).astype(jnp.int32)
    order_C = jnp.argsort(flat_C, stable=True).astype(jnp.int32)
    place_C = inverse(order_C, flat_C.shape[0])
    place_C = jnp.where(flat_C < experts, place_C, rows)
    size_E = jnp.sum(flat_C[:, None] == jnp.arange(experts)[None], 0, dtype=jnp.int32)
    return Order(
        order_C[:rows], place_C.reshape(expert_TC.shape), flat_C[order_C][:rows], size_E
    )


def inverse(order_C: Array, size: int) -> Array:
    """Where each of `size` things stands in an order of some of them; else past it."""
    places = order_C.shape[0]
    out = jnp.full((size,), places, jnp.int32)
    return out.at[order_C].set(jnp.arange(places, dtype=jnp.int32), mode="drop")


@jax.custom_vjp
def spread(h_TD: Array, order: Order) -> Array:
    """Each row's token."""
    choices = order.place_TC.shape[1]
    held_C1 = (order.expert_C < order.size_E.shape[0])[:, None]
    return jnp.where(held_C1, h_TD[order.order_C // choices], 0)


def _spread_forward(h_TD, order):
    return spread(h_TD, order), order


def _spread_backward(order, d_CD):
    d_TCD = _taken(d_CD, order.place_TC)
    return jnp.sum(d_TCD, 1, dtype=jnp.float32).astype(d_CD.dtype), None


spread.defvjp(_spread_forward, _spread_backward)


def gathered(y_CD: Array, choice: Choice, order: Order) -> Array:
    """Each token's rows, weighted and summed in float32."""
    tokens, choices = order.place_TC.shape
    pair_C = order.order_C
    none = order.expert_C >= order.size_E.shape[0]
    back_C = jnp.where(none, tokens * choices, pair_C)
    y_TCD = reorder(y_CD, order.place_TC.reshape(-1), back_C)
    y_TCD = y_TCD.reshape(tokens, choices, -1).astype(jnp.float32)
    return jnp.sum(y_TCD * choice.weight_TC[..., None], 1).astype(y_CD.dtype)
