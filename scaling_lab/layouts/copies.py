"""Copies of a pipeline's stage over ``data``, and when they are independent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from scaling_lab import dims
from scaling_lab.layouts.tables import Layout, Table, listed
from scaling_lab.parallel.pipeline import REPLICAS
from scaling_lab.parallel.verbs import Batch, Segment

Array = jax.Array


def copies_of(
    place: Any, inner: Any, segment: Segment, x_BTD: Array, per_batch: Batch
) -> int:
    """How many copies of a stage add up their weights' gradients by themselves.

    All over ``data``, unless gradients rest divided over it, which is to save the
    memory that this takes, or are reduced in a precision of their own, or layers say
    something beside their result (a router's losses), which is of a whole microbatch.

    Args:
      inner: the placement within a stage.
    """
    if not independent(place.layout) or place.reduce is not None:
        return 1
    one = {
        dims.unstacked(name): jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
        for name, a in segment.params.items()
    }
    block = functools.partial(segment.block, inner)
    _, aux, _ = jax.eval_shape(block, one, x_BTD, per_batch, None)
    return 1 if jax.tree.leaves(aux) else place.layout.mesh[REPLICAS]


def independent(layout: Layout) -> bool:
    """Whether copies over ``data`` differ in their sequences alone."""
    sequences = layout.spec("acts", "BT")[0]
    if layout.mesh.get(REPLICAS, 1) == 1 or REPLICAS not in sequences:
        return False
    return not any(map(_is_divided, (layout.table("params"), layout.table("grads"))))


def _is_divided(table: Table) -> bool:
    """Whether a table divides anything over the copies."""
    return any(
        _is_divided(axes) if isinstance(axes, Mapping) else REPLICAS in listed(axes)
        for axes in table.values()
    )
