"""Moving rows between the devices of an axis: any number to each, or in padded boxes.

Both put a row at the same place: at its receiver rows stand by expert, and those of one
expert by sender.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling_lab.parallel.experts.rows import inverse, reorder

Array = jax.Array


class Link(NamedTuple):
    """What is known of an exchange when it is compiled.

    Attributes:
      axes: mesh axes it runs over. devices: on them.
      most: rows from one device to another. rows: that one device has to send.
    """

    axes: tuple[str, ...]
    devices: int
    most: int
    rows: int


class Route(NamedTuple):
    """How many rows go where; Z counts the devices of the axis.

    Attributes:
      count_ZE: of every device, how many rows for every expert of the layer.
      rank: this device's number.
    """

    count_ZE: Array
    rank: Array

    @property
    def own_ZE(self) -> Array:
        """The same, for this device's experts alone."""
        devices, experts = self.count_ZE.shape
        held = experts // devices
        return jax.lax.dynamic_slice_in_dim(
            self.count_ZE, self.rank * held, held, axis=1
        )


#: ``(link, whether to go home, rows_CD, route) -> CD``
Move = Callable[[Link, bool, Array, Route], Array]


def route(size_E: Array, link: Link) -> Route:
    """The route, from how many rows this device has for every expert."""
    count_ZE = jax.lax.all_gather(size_E, link.axes, axis=0)
    return Route(count_ZE, jax.lax.axis_index(link.axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def go(move: Move, link: Link, home: bool, rows_CD: Array, route: Route) -> Array:
    """Rows to their experts, or home; each way is the other's gradient."""
    return move(link, home, rows_CD, route)


def _go_forward(move, link, home, rows_CD, route):
    return go(move, link, home, rows_CD, route), route


def _go_backward(move, link, home, route, d_CD):
    return go(move, link, not home, d_CD, route), None


go.defvjp(_go_forward, _go_backward)


def ragged(link: Link, home: bool, rows_CD: Array, route: Route) -> Array:
    """By `jax.lax.ragged_all_to_all`, one slice for each pair of sender and expert."""
    count_ZE, own_ZE = route.count_ZE, route.own_ZE
    devices, experts = count_ZE.shape
    # Where each (sender, expert) begins at its sender, and at its receiver.
    here_ZE = jnp.cumsum(count_ZE, 1) - count_ZE
    total_ZE = jnp.sum(count_ZE, 0).reshape(devices, experts // devices)
    first_E = (jnp.cumsum(total_ZE, 1) - total_ZE).reshape(-1)
    there_ZE = first_E[None] + jnp.cumsum(count_ZE, 0) - count_ZE
    mine_E = count_ZE[route.rank]
    if home:
        left = Route(there_ZE, route.rank).own_ZE.reshape(-1)
        right = Route(here_ZE, route.rank).own_ZE.reshape(-1)
        sent, received, room = own_ZE.reshape(-1), mine_E, link.rows
    else:
        left, right = here_ZE[route.rank], there_ZE[route.rank]
        sent, received = mine_E, own_ZE.reshape(-1)
        room = link.devices * link.most
    empty_CD = jnp.zeros((room, rows_CD.shape[1]), rows_CD.dtype)
    return jax.lax.ragged_all_to_all(
        rows_CD, empty_CD, left, sent, right, received, axis_name=link.axes
    )


def padded(link: Link, home: bool, rows_CD: Array, route: Route) -> Array:
    """By `jax.lax.all_to_all` of boxes that hold the most there could be.

    For backends that lack the ragged one (XLA:CPU).
    """
    boxed_C = _boxed(link, route)
    placed_C = _placed(link, route)
    unboxed_C = inverse(boxed_C, link.rows)
    unplaced_C = inverse(placed_C, placed_C.shape[0])
    if home:
        boxes_CD = _swap(link, reorder(rows_CD, unplaced_C, placed_C))
        return reorder(boxes_CD, unboxed_C, boxed_C)
    boxes_CD = _swap(link, reorder(rows_CD, boxed_C, unboxed_C))
    return reorder(boxes_CD, placed_C, unplaced_C)


def _swap(link: Link, rows_CD: Array) -> Array:
    return jax.lax.all_to_all(
        rows_CD, link.axes, split_axis=0, concat_axis=0, tiled=True
    )


def _boxed(link: Link, route: Route) -> Array:
    """Of each place in the boxes to be sent, its row."""
    mine_E = route.count_ZE[route.rank]
    size_Z = jnp.sum(mine_E.reshape(link.devices, -1), 1)
    first_Z = jnp.cumsum(size_Z) - size_Z
    slot_ZC = jnp.broadcast_to(
        jnp.arange(link.most, dtype=jnp.int32)[None], (link.devices, link.most)
    )
    real_ZC = slot_ZC < size_Z[:, None]
    return jnp.where(real_ZC, first_Z[:, None] + slot_ZC, link.rows).reshape(-1)


def _placed(link: Link, route: Route) -> Array:
    """Of each row by expert and sender, its place in the boxes that came.

    Empty places stand last.
    """
    ends_ZE = jnp.cumsum(route.own_ZE, 1)
    slot_C = jnp.arange(link.most, dtype=jnp.int32)
    expert_ZC = jnp.sum(slot_C[None, :, None] >= ends_ZE[:, None, :], -1)
    return jnp.argsort(expert_ZC.reshape(-1), stable=True).astype(jnp.int32)
