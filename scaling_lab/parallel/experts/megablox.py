"""Rows times their experts' weights on a TPU, in kernels whose work is the rows' own.

XLA makes of `jax.lax.ragged_dot` there a kernel that goes over each expert's rows, but
of its weights' gradient one product of all rows for every expert (libtpu 0.0.42): as
many times the work as a device has experts. That gradient is MegaBlox's kernel here
(MegaBlocks, Gale et al. 2022, section 5.1, as JAX has it for TPUs); in float32 it stays
the compiler's. `interpret` runs it without one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from scaling_lab.parallel.experts.products import Expert, Groups, by_groups, ragged

Array = jax.Array

#: Rows of a step, and the longest side of a tile of a weight's gradient: its float32
#: sums and the steps that are read ahead fill 12 of the 16 MiB that a kernel is given.
ROWS, SIDE = 256, 1024
#: What the sides of a tile are multiples of.
LANES = 128


def grouped(
    expert: Expert,
    groups: Groups,
    weights: Mapping[str, Array],
    name: str,
    *,
    interpret: bool = False,
) -> Array:
    """`Grouped`, in 16 bits with float32 sums."""
    # The kernels go over the rows that come; this is how `compile` knows how many.
    told = f"rows_{groups.mean}_of_{groups.rows_CD.shape[0]}"

    def multiply(x_CD: Array, weight_EDF: Array, size_E: Array) -> Array:
        with jax.named_scope(told):
            return _product(interpret, x_CD, weight_EDF, size_E)

    return ragged(expert, groups, weights, name, multiply)


def alone(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function, of stacked arrays once for each of the stack.

    Stages stack what they do, each device a stack of its one, and XLA:TPU has no
    product by groups with a dim in front (libtpu 0.0.42).
    """
    single = custom_vmap(function)

    @single.def_vmap
    def rule(count: int, stacked: Any, *arrays: Array) -> tuple[Array, bool]:
        def of(i: int) -> list[Array]:
            return [a[i] if s else a for a, s in zip(arrays, stacked, strict=True)]

        return jnp.stack([single(*of(i)) for i in range(count)]), True

    return single


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(interpret: bool, x_CD: Array, weight_EDF: Array, size_E: Array) -> Array:
    del interpret
    return alone(by_groups)(x_CD, weight_EDF, size_E)


def _forward(interpret, x_CD, weight_EDF, size_E):
    return _product(interpret, x_CD, weight_EDF, size_E), (x_CD, weight_EDF, size_E)


def _backward(interpret, residuals, d_CF):
    x_CD, weight_EDF, size_E = residuals
    dx_CD = _product(interpret, d_CF, jnp.swapaxes(weight_EDF, 1, 2), size_E)
    of_weights = alone(functools.partial(_of_weights, interpret))
    return dx_CD, of_weights(x_CD, d_CF, size_E), None


_product.defvjp(_forward, _backward)


def _of_weights(interpret: bool, x_CD: Array, d_CF: Array, size_E: Array) -> Array:
    """Each expert's sum of its rows' outer products, in the rows' dtype."""
    if x_CD.dtype == jnp.float32:
        shape = (*size_E.shape, x_CD.shape[1], d_CF.shape[1])
        linear = functools.partial(by_groups, x_CD, size_E=size_E)
        (dw_EDF,) = jax.linear_transpose(linear, jnp.zeros(shape))(d_CF)
        return dw_EDF
    # Experimental in JAX, and of no use without a TPU.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    missing = -x_CD.shape[0] % ROWS
    x_CD, d_CF = (jnp.pad(a, ((0, missing), (0, 0))) for a in (x_CD, d_CF))
    tile = (ROWS, _side(x_CD.shape[1]), _side(d_CF.shape[1]))
    return tgmm(x_CD.T, d_CF, size_E, x_CD.dtype, tile, interpret=interpret)


def _side(size: int) -> int:
    """The side of tiles that cover a length and pass it by little."""
    each = -(-size // -(-size // SIDE))
    return -(-each // LANES) * LANES
