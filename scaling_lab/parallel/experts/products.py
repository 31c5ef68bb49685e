"""Rows times their experts' weights: grouped products, by the compiler or by blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from scaling_lab import dims
from scaling_lab.parallel.experts.rows import inverse, reorder

Array = jax.Array
#: ``product(x, "gate_EDF")``: rows times their expert's weight of that name.
Product = Callable[[Array, str], Array]
#: ``expert(product, h_CD) -> CD``: what one expert does, for rows of any experts.
Expert = Callable[[Product, Array], Array]


class Groups(NamedTuple):
    """Rows in their experts' order, and how many each has.

    Attributes:
      rows_CD: with room for the most that can come. size_E: of every expert.
      mean: how many come if every expert is sent as many.
      gathered: of weights that devices held in parts the dim these were of.
    """

    rows_CD: Array
    size_E: Array
    mean: int
    gathered: Mapping[str, int] = {}


#: ``(expert, groups, weights, name) -> CD``; rows past the last come back as zeros.
Grouped = Callable[[Expert, Groups, Mapping[str, Array], str], Array]

#: The fewest and the most rows of a block.
NARROWEST, WIDEST = 16, 256


def precision(array: Array) -> Any:
    """Float32 means float32 on every backend."""
    return jax.lax.Precision.HIGHEST if array.dtype == jnp.float32 else None


def named(result: Array, key: str, name: str) -> Array:
    """A product's result, under the name that remat knows it by."""
    return checkpoint_name(result, f"{name}/{dims.stem(key)}")


def by_groups(x_CD: Array, weight_EDF: Array, size_E: Array) -> Array:
    """By `jax.lax.ragged_dot`: by groups on a TPU, densely over a device's experts on a
    CPU and, as of jax 0.10, on a GPU."""
    return jax.lax.ragged_dot(x_CD, weight_EDF, size_E, precision=precision(x_CD))


def ragged(
    expert: Expert,
    groups: Groups,
    weights: Mapping[str, Array],
    name: str,
    multiply: Callable[[Array, Array, Array], Array] = by_groups,
) -> Array:
    """All rows in one product.

    Args:
      multiply: ``(x_CD, weight_EDF, size_E) -> CF``.
    """
    rows_CD, size_E = groups.rows_CD, groups.size_E
    held_C1 = (jnp.arange(rows_CD.shape[0]) < jnp.sum(size_E))[:, None]

    def product(x_CD: Array, key: str) -> Array:
        return named(multiply(x_CD, weights[key], size_E), key, name)

    # A row of no group holds whatever the backend leaves there.
    return jnp.where(held_C1, expert(product, rows_CD), 0)


def each(
    expert: Expert, rows_ECD: Array, weights: Mapping[str, Array], name: str
) -> Array:
    """As many rows for every expert: a batched product."""

    def product(x_ECD: Array, key: str) -> Array:
        result = jnp.einsum(
            "ECD,EDF->ECF", x_ECD, weights[key], precision=precision(x_ECD)
        )
        return named(result, key, name)

    return expert(product, rows_ECD)


def blocked(
    expert: Expert,
    groups: Groups,
    weights: Mapping[str, Array],
    name: str,
) -> Array:
    """By blocks of rows of one expert each, one after another; empty ones are skipped.

    For processors where a grouped product is dense over experts (XLA:CPU).
    """
    rows_CD, size_E = groups.rows_CD, groups.size_E
    rows, experts = rows_CD.shape[0], size_E.shape[0]
    block = _block(rows, experts)
    blocks = -(-rows // block) + experts
    index_C, expert_M = _aligned(size_E, rows, block, blocks)
    place_C = inverse(index_C, rows)
    aligned_CD = reorder(rows_CD, index_C, place_C)

    def product(x_CD: Array, key: str) -> Array:
        x_MCD = x_CD.reshape(blocks, block, -1)
        result = _by_blocks(x_MCD, weights[key], expert_M)
        return named(result.reshape(blocks * block, -1), key, name)

    return reorder(expert(product, aligned_CD), place_C, index_C)


def _block(rows: int, experts: int) -> int:
    """A power of two near half an expert's mean rows: few are padded."""
    mean = max(1, rows // (2 * experts))
    return min(WIDEST, max(NARROWEST, 1 << (mean.bit_length() - 1)))


def _aligned(size_E: Array, rows: int, block: int, blocks: int) -> tuple[Array, Array]:
    """Which row stands where once every expert's rows begin a block; each block's
    expert, or E."""
    count_E = -(-size_E // block)
    ends_E = jnp.cumsum(count_E)
    expert_M = jnp.searchsorted(ends_E, jnp.arange(blocks), side="right")
    padded_M = jnp.minimum(expert_M, size_E.shape[0] - 1)
    first_M = (ends_E - count_E)[padded_M]  # the expert's first block
    start_M = (jnp.cumsum(size_E) - size_E)[padded_M]  # and its first row
    within_MC = ((jnp.arange(blocks) - first_M) * block)[:, None] + jnp.arange(block)[
        None
    ]
    real_MC = (within_MC < size_E[padded_M][:, None]) & (expert_M < size_E.shape[0])[
        :, None
    ]
    index_MC = jnp.where(real_MC, start_M[:, None] + within_MC, rows)
    return index_MC.reshape(-1).astype(jnp.int32), expert_M.astype(jnp.int32)


@jax.custom_vjp
def _by_blocks(x_MCD: Array, weight_EDF: Array, expert_M: Array) -> Array:
    return _scanned("CD,DF->CF", x_MCD, weight_EDF, expert_M)


def _scanned(equation: str, x_MCD: Array, weight_EDF: Array, expert_M: Array) -> Array:
    experts = weight_EDF.shape[0]
    shape = jax.eval_shape(
        functools.partial(jnp.einsum, equation), x_MCD[0], weight_EDF[0]
    ).shape

    def one(_, step):
        x_CD, e = step

        def real():
            own = jax.lax.dynamic_index_in_dim(weight_EDF, e, 0, keepdims=False)
            return jnp.einsum(equation, x_CD, own, precision=precision(x_CD))

        return None, jax.lax.cond(
            e < experts, real, lambda: jnp.zeros(shape, x_CD.dtype)
        )

    return jax.lax.scan(one, None, (x_MCD, expert_M))[1]


def _by_blocks_forward(x_MCD, weight_EDF, expert_M):
    return _by_blocks(x_MCD, weight_EDF, expert_M), (x_MCD, weight_EDF, expert_M)


def _by_blocks_backward(residuals, d_MCF):
    x_MCD, weight_EDF, expert_M = residuals
    experts = weight_EDF.shape[0]
    dx_MCD = _scanned("CF,DF->CD", d_MCF, weight_EDF, expert_M)

    def add(total_EDF, step):
        x_CD, d_CF, e = step

        def real():
            own_DF = jnp.einsum(
                "CD,CF->DF",
                x_CD,
                d_CF,
                precision=precision(x_CD),
                preferred_element_type=jnp.float32,
            )
            return total_EDF.at[e].add(own_DF)

        return jax.lax.cond(e < experts, real, lambda: total_EDF), None

    zeros_EDF = jnp.zeros(weight_EDF.shape, jnp.float32)
    dw_EDF, _ = jax.lax.scan(add, zeros_EDF, (x_MCD, d_MCF, expert_M))
    return dx_MCD, dw_EDF.astype(weight_EDF.dtype), None


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)
