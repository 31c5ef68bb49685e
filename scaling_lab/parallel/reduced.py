"""A contraction whose weight's gradient is reduced straight to where it rests.

Left to itself, XLA's partitioner sums the whole gradient on every device and then cuts
it: an all-reduce, twice the bytes of the reduce-scatter that is wanted (ZeRO,
Rajbhandari et al. 2020, section 7.2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax import custom_batching
from jax.sharding import PartitionSpec

from scaling_lab.parallel import equations

Array = jax.Array
Spec = tuple[tuple[str, ...], ...]


class Reduction(NamedTuple):
    """How a weight's gradient is summed.

    Attributes:
      mesh: of all arrays.
      sequences: for B and for T the mesh axes that x is divided over, where partial
        sums are.
      used: for every dim of the weight the mesh axes it is divided over in use.
      rests: the same of its gradient.
    """

    mesh: Any
    sequences: Spec
    used: Spec
    rests: Spec


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def contract(
    local: equations.Contract,
    equation: str,
    reduction: Reduction,
    x: Array,
    weight: Array,
) -> Array:
    """``local(equation, (x, weight))``; B and T come first in x and in the result.

    The weight's gradient leaves divided as `Reduction.rests` says.
    """
    del reduction
    return local(equation, (x, weight))


def _forward(local, equation, reduction, x, weight):
    del reduction
    return local(equation, (x, weight)), (x, weight)


def _backward(local, equation, reduction, residuals, gradient):
    x, weight = residuals
    (left, right), output = equations.parse(equation)
    dx = local(f"{output},{right}->{left}", (gradient, weight))
    return dx, _reduced(f"{left},{output}->{right}", reduction, x, gradient)


contract.defvjp(_forward, _backward)


def _reduced(equation: str, reduction: Reduction, x: Array, gradient: Array) -> Array:
    """Each device's own sequences, then one sum over the devices that hold others.

    A dim that the sum divides comes first: a GPU divides nothing else, and would turn
    the whole gradient over. What is turned over here is the device's own part.
    """
    (left, output), weight = equations.parse(equation)
    over = {axis for axes in reduction.sequences for axis in axes}
    scattered = [
        tuple(axis for axis in axes if axis in over) for axes in reduction.rests
    ]
    summed = tuple(over - {axis for axes in scattered for axis in axes})

    order = sorted(range(len(weight)), key=lambda dim: not scattered[dim])
    turned = "".join(weight[dim] for dim in order)
    back = [order.index(dim) for dim in range(len(weight))]

    def local(x: Array, gradient: Array) -> Array:
        if turned[0] in left:
            own = equations.contract(f"{left},{output}->{turned}", (x, gradient))
        else:
            own = equations.contract(f"{output},{left}->{turned}", (gradient, x))
        for dim, place in enumerate(order):
            if axes := scattered[place]:
                own = jax.lax.psum_scatter(own, axes, scatter_dimension=dim, tiled=True)
        own = jax.lax.psum(own, summed) if summed else own
        return jax.lax.transpose(own, back)

    place = dict(zip("BT", reduction.sequences, strict=True))
    place |= dict(zip(weight, reduction.used, strict=True))
    rests = zip(reduction.used, scattered, strict=True)
    return jax.shard_map(
        one_by_one(local),
        mesh=reduction.mesh,
        in_specs=tuple(_partition(place[x] for x in term) for term in (left, output)),
        out_specs=_partition(used + more for used, more in rests),
    )(x, gradient)


def one_by_one(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function, which under `jax.vmap` over one thing is called on that thing.

    Every stage of a pipeline is one of one on its device. As a dim of 1 it would turn
    the TPU's reduce-scatters of matrices into all-reduces.
    """
    called: Any = custom_batching.custom_vmap(function)

    @called.def_vmap
    def rule(size: int, batched: Any, *arrays: Array) -> tuple[Array, bool]:
        axes = tuple(0 if each else None for each in batched)
        if size > 1:
            return jax.vmap(function, axes)(*arrays), True
        own = (a[0] if each else a for a, each in zip(arrays, batched, strict=True))
        return called(*own)[None], True

    return called


def _partition(spec: Iterable[tuple[str, ...]]) -> PartitionSpec:
    return PartitionSpec(*(axes or None for axes in spec))
