"""Products over divided positions in steps, each of which hides the next piece's way.

Where weights are divided over an axis and positions between the products are too, a
product wants its input gathered, or its result summed and divided. Here pieces of the
input, or of the sums, go round the axis while the products of other pieces are made
(Wang et al. 2023, Overlap Communication with Dependent Computation via Decomposition,
section 3). Backward a gather is a sum and a sum a gather, and both go round as well.

No layout binds this: `experiments.overlap_by_hand` has the table of where it loses.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling_lab.parallel import equations

Array = jax.Array


class Turn(NamedTuple):
    """How one contraction goes round an axis of the mesh.

    Attributes:
      gathers: its input comes from all over the axis; else its result is summed and
        divided over it.
      specs: of x, of the weight in use, and of the result. rests: of the weight's
        gradient. ways: 2 where a device has a link to either side, and half a piece
        takes each.
    """

    mesh: Any
    axis: str
    gathers: bool
    specs: tuple[PartitionSpec, ...]
    rests: tuple[tuple[str, ...], ...]
    ways: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def contract(equation: str, turn: Turn, x: Array, weight: Array) -> Array:
    """The contraction, piece by piece; B and T come first in x and in the result."""

    def own(x: Array, weight: Array) -> Array:
        if turn.gathers:
            return _gathered(equation, turn, x, weight)[0]
        return _summed(equation, turn, x, weight)

    specs = turn.specs
    return _spread(own, turn, specs[:2], specs[2])(x, weight)


def _forward(equation, turn, x, weight):
    return contract(equation, turn, x, weight), (x, weight)


def _backward(equation, turn, residuals, gradient):
    (left, right), output = equations.parse(equation)
    back, of_weight = f"{output},{right}->{left}", f"{left},{output}->{right}"
    replicas = turn.specs[0][0]
    replicas = (replicas,) if isinstance(replicas, str) else replicas
    scattered = [tuple(a for a in axes if a in replicas) for axes in turn.rests]

    def own(x: Array, weight: Array, gradient: Array) -> tuple[Array, Array]:
        if turn.gathers:
            dx = _summed(back, turn, gradient, weight)
            x = _gathered("", turn, x, None)[1]
        else:
            dx, gradient = _gathered(back, turn, gradient, weight)
        dw = equations.contract(of_weight, (x, gradient))
        for dim, axes in enumerate(scattered):
            if axes:
                dw = jax.lax.psum_scatter(dw, axes, scatter_dimension=dim, tiled=True)
        left = tuple(set(replicas) - {a for axes in scattered for a in axes})
        return dx, jax.lax.psum(dw, left) if left else dw

    used = (*turn.specs[1], *[None] * len(right))[: len(right)]
    dw_spec = PartitionSpec(
        *(
            (*((u,) if isinstance(u, str) else u or ()), *more) or None
            for u, more in zip(used, scattered, strict=True)
        )
    )
    return _spread(own, turn, turn.specs, (turn.specs[0], dw_spec))(
        *residuals, gradient
    )


contract.defvjp(_forward, _backward)


def _spread(function: Any, turn: Turn, inside: Any, outside: Any) -> Any:
    return jax.shard_map(
        function, mesh=turn.mesh, in_specs=inside, out_specs=outside, check_vma=False
    )


def _gathered(
    equation: str, turn: Turn, x: Array, weight: Array | None
) -> tuple[Any, Array]:
    """The product of all pieces, each as it comes; and all pieces."""
    devices, index = jax.lax.axis_size(turn.axis), jax.lax.axis_index(turn.axis)
    piece, product = x.shape[1], None
    whole = jnp.zeros((x.shape[0], devices * piece, *x.shape[2:]), x.dtype)
    half = piece // turn.ways
    held = [x[:, way * half : (way + 1) * half] for way in range(turn.ways)]
    for step in range(devices):
        last = step + 1 == devices
        coming = [] if last else [_passed(part, turn, w) for w, part in enumerate(held)]
        for way, part in enumerate(held if step else [x]):
            owner = (index - step if way == 0 else index + step) % devices
            place = owner * piece + way * half
            whole = jax.lax.dynamic_update_slice_in_dim(whole, part, place, 1)
            if weight is None:
                continue
            made = equations.contract(equation, (part, weight))
            if product is None:
                shape = (made.shape[0], devices * piece, *made.shape[2:])
                product = jnp.zeros(shape, made.dtype)
            product = jax.lax.dynamic_update_slice_in_dim(product, made, place, 1)
        held = coming
    return product, whole


def _summed(equation: str, turn: Turn, x: Array, weight: Array) -> Array:
    """This device's piece of the sum; the sums of others go by and grow."""
    devices, index = jax.lax.axis_size(turn.axis), jax.lax.axis_index(turn.axis)
    piece = x.shape[1] // devices
    half = piece // turn.ways
    sums: list[Any] = [None] * turn.ways
    for step in range(1, devices + 1):
        for way in range(turn.ways):
            owner = (index - step if way == 0 else index + step) % devices
            start = owner * piece + way * half
            own = jax.lax.dynamic_slice_in_dim(x, start, half, 1)
            made = equations.contract(equation, (own, weight))
            before = sums[way]
            sums[way] = made if before is None else made + _passed(before, turn, way)
    return jnp.concatenate(sums, 1)


def _passed(array: Array, turn: Turn, way: int) -> Array:
    devices = jax.lax.axis_size(turn.axis)
    ring = [(i, (i + 1 - 2 * way) % devices) for i in range(devices)]
    return jax.lax.ppermute(array, turn.axis, ring)
