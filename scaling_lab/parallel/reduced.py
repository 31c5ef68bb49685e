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
      dtype: that partial sums are added up in; ``None`` is that of x.
    """

    mesh: Any
    sequences: Spec
    used: Spec
    rests: Spec
    dtype: str | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def contract(
    products: equations.Products,
    equation: str,
    reduction: Reduction,
    x: Array,
    weight: Array,
) -> Array:
    """The contraction of x and weight; B and T come first in x and in the result.

    The weight's gradient leaves divided as `Reduction.rests` says.
    """
    del reduction
    return products.forward(equation, (x, weight))


def _forward(products, equation, reduction, x, weight):
    del reduction
    return products.forward(equation, (x, weight)), (x, weight)


def _backward(products, equation, reduction, residuals, gradient):
    x, weight = residuals
    (left, right), output = equations.parse(equation)
    dx = products.backward(f"{output},{right}->{left}", (gradient, weight))
    equation = f"{left},{output}->{right}"
    found = _reduced(equation, products, reduction, x, gradient)
    return dx, found.astype(weight.dtype)


contract.defvjp(_forward, _backward)


def _reduced(
    equation: str,
    products: equations.Products,
    reduction: Reduction,
    x: Array,
    gradient: Array,
) -> Array:
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
    named, multiply = products.weigh(
        f"{left},{output}->{turned}", (x, gradient), reduction.dtype or x.dtype
    )

    def local(*parts: Array) -> Array:
        own = multiply(*parts)
        for dim, place in enumerate(order):
            if axes := scattered[place]:
                own = jax.lax.psum_scatter(own, axes, scatter_dimension=dim, tiled=True)
        own = jax.lax.psum(own, summed) if summed else own
        return jax.lax.transpose(own, back)

    place = dict(zip("BT", reduction.sequences, strict=True))
    place |= dict(zip(weight, reduction.used, strict=True))
    specs = (_partition(place[x] for x in letters) for letters, _ in named)
    rests = zip(reduction.used, scattered, strict=True)
    return jax.shard_map(
        one_by_one(local),
        mesh=reduction.mesh,
        in_specs=tuple(specs),
        out_specs=_partition(used + more for used, more in rests),
    )(*(array for _, array in named))


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
