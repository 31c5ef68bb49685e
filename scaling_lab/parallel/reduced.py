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
    named, multiply = products.weigh(
        f"{left},{output}->{right}", (x, gradient), reduction.dtype or x.dtype
    )
    return dx, _reduced(named, multiply, right, reduction).astype(weight.dtype)


contract.defvjp(_forward, _backward)


def _reduced(
    named: tuple[equations.Named, ...],
    multiply: Callable[..., Array],
    weight: str,
    reduction: Reduction,
) -> Array:
    """Each device's own sequences, then one sum over the devices that hold others.

    Args:
      named: what is multiplied, with letters. weight: the letters of the product.
    """
    over = {axis for axes in reduction.sequences for axis in axes}
    scattered = [
        tuple(axis for axis in axes if axis in over) for axes in reduction.rests
    ]
    summed = tuple(over - {axis for axes in scattered for axis in axes})

    def local(*parts: Array) -> Array:
        own = multiply(*parts)
        for dim, axes in enumerate(scattered):
            if axes:
                own = jax.lax.psum_scatter(own, axes, scatter_dimension=dim, tiled=True)
        return jax.lax.psum(own, summed) if summed else own

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
