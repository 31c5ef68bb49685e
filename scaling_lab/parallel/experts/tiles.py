"""Rows times their experts' weights on a GPU, in kernels whose work is the rows' own.

XLA multiplies every row there by every expert of a device (`jax.lax.ragged_dot`, as of
jax 0.10), and each row that there is room for. Here a program makes one tile: of a
product some rows of one expert, of its weights' gradient a part of one expert's
weight, over that expert's rows alone. Which rows those are is data, read by the
program, so a place where no row stands costs nothing, and no row is moved to fill up
another's tile (MegaBlocks, Gale et al. 2022, pads them): one that two experts share is
made for each.

In Pallas, for Triton, whose code is compiled with the step. `interpret` runs the same
bodies without a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from scaling_lab.parallel.experts import tile_bodies as bodies
from scaling_lab.parallel.experts.products import Expert, Groups, named

Array = jax.Array

#: The sides of a tile in 16 bits, and how deep a step of its product is; in 32 bits the
#: last two are half as long. Rows are fewer where experts have few.
ROWS, COLUMNS, DEPTH = 128, 256, 64
#: No side of a product of Triton's is shorter.
SHORTEST = 16
WARPS, STEPS_AHEAD = 8, 3


class _Call(NamedTuple):
    """What is known of a layer's products when they are compiled.

    Attributes:
      rows: of a tile. mean: rows that come in the mean. interpret: without a GPU.
      first: the dim of the weight that stands first in memory.
    """

    rows: int
    mean: int
    interpret: bool
    first: int = 0

    def stored(self, weight_EDF: Array) -> Array:
        """A weight whose first dim in memory is its first.

        What is gathered of parts stands part after part, and is copied unless the
        kernel takes it so; so do parts of its gradient where they are sent.
        """
        return jnp.moveaxis(weight_EDF, self.first, 0)


class _Visits(NamedTuple):
    """Which tiles of rows are made; M counts them, experts' in order.

    Attributes:
      expert_M: its expert. first_M: the tile's first row.
      low_M, high_M: its expert's first row in it, and past the last; equal where there
        is nothing to make.
      start_E, end_E: each expert's first row, and past its last.
    """

    expert_M: Array
    first_M: Array
    low_M: Array
    high_M: Array
    start_E: Array
    end_E: Array


def tiled(
    expert: Expert,
    groups: Groups,
    weights: Mapping[str, Array],
    name: str,
    *,
    interpret: bool = False,
) -> Array:
    """`Grouped` by tiles of rows of one expert each; in float32 sums."""
    rows_CD, size_E = groups.rows_CD, groups.size_E
    block = _side(groups.mean // (2 * size_E.shape[0]), ROWS)
    call = _Call(block, groups.mean, interpret)
    visits = _visits(size_E, rows_CD.shape[0], block)

    def product(x_CD: Array, key: str) -> Array:
        own = call._replace(first=groups.gathered.get(key, 0))
        return named(_product(own, x_CD, weights[key], visits), key, name)

    # Where no row stands a product leaves what was there before.
    held_C1 = (jnp.arange(rows_CD.shape[0]) < jnp.sum(size_E))[:, None]
    return jnp.where(held_C1, expert(product, rows_CD), 0)


def _side(size: int, most: int) -> int:
    """The least power of two not below a size, and at most `most`."""
    return min(most, max(SHORTEST, 1 << max(0, size - 1).bit_length()))


def _along(size: int, most: int) -> int:
    """The side of tiles along a length: shorter where that leaves none half empty."""
    side = _side(size, most)
    while side > most // 4 and size > side and size % side:
        side //= 2
    return side if size % side == 0 else _side(size, most)


def _visits(size_E: Array, rows: int, block: int) -> _Visits:
    """The tiles that experts' rows touch, first those of the first expert."""
    experts = size_E.shape[0]
    most = -(-rows // block) + experts - 1
    end_E = jnp.cumsum(size_E)
    start_E = end_E - size_E
    first_E = start_E // block
    count_E = jnp.where(size_E > 0, -(-end_E // block) - first_E, 0)
    past_E = jnp.cumsum(count_E)
    number_M = jnp.arange(-(-most // bodies.TOGETHER) * bodies.TOGETHER)
    found_M = jnp.sum(number_M[:, None] >= past_E[None], 1)
    expert_M = jnp.minimum(found_M, experts - 1)
    tile_M = (first_E - past_E + count_E)[expert_M] + number_M
    first_M = tile_M * block
    low_M = jnp.maximum(first_M, start_E[expert_M])
    high_M = jnp.minimum(first_M + block, end_E[expert_M])
    high_M = jnp.where(found_M < experts, high_M, low_M)
    found = (expert_M, first_M, low_M, high_M, start_E, end_E)
    return _Visits(*(array.astype(jnp.int32) for array in found))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(call: _Call, x_CD: Array, weight_EDF: Array, visits: _Visits) -> Array:
    return _of_rows(call, x_CD, weight_EDF, visits, back=False)


def _product_forward(call, x_CD, weight_EDF, visits):
    return _product(call, x_CD, weight_EDF, visits), (x_CD, weight_EDF, visits)


def _product_backward(call, residuals, d_CF):
    x_CD, weight_EDF, visits = residuals
    dx_CD = _of_rows(call, d_CF, weight_EDF, visits, back=True)
    return dx_CD, _of_weights(call, x_CD, d_CF, visits), None


_product.defvjp(_product_forward, _product_backward)


def _tile(rows: int, whole: tuple[int, int, int], dtype: Any) -> bodies.Tile:
    narrow = 1 if jnp.dtype(dtype).itemsize <= 2 else 2
    columns = _along(whole[1], COLUMNS // narrow)
    return bodies.Tile((rows, columns, _along(whole[2], DEPTH // narrow)), whole)


def _of_rows(
    call: _Call, x_CD: Array, weight_EDF: Array, visits: _Visits, *, back: bool
) -> Array:
    """Rows by their expert's weight, or on the way back by its transpose."""
    rows, depth = x_CD.shape
    width = weight_EDF.shape[1 if back else 2]
    across = back != (call.first == 2)
    tile = _tile(call.rows, (rows, width, depth), x_CD.dtype)
    experts = weight_EDF.shape[0]
    # Of the borders between experts nearly every one lies inside a tile.
    made = (-(-call.mean // call.rows) + experts - 1) * call.rows
    return _run(
        call,
        functools.partial(bodies.of_rows, tile, across, call.first > 0),
        (*visits[:4], x_CD, call.stored(weight_EDF)),
        jax.ShapeDtypeStruct((rows, width), x_CD.dtype),
        programs=visits.expert_M.shape[0] * tile.counts()[1],
        flops=2 * made * math.prod(tile.filled()[1:]),
        elements=made * width,
    )


def _of_weights(call: _Call, x_CD: Array, d_CF: Array, visits: _Visits) -> Array:
    """Each expert's sum of its rows' outer products, in the rows' dtype."""
    experts = visits.start_E.shape[0]
    left, right = (d_CF, x_CD) if call.first == 2 else (x_CD, d_CF)
    whole = (left.shape[1], right.shape[1], left.shape[0])
    tile = _tile(_along(whole[0], ROWS), whole, x_CD.dtype)
    down, across, _ = tile.counts()
    down = -(-down // bodies.TOGETHER) * bodies.TOGETHER
    made = call.mean + experts * tile.sides[2] // 2  # last steps are half empty
    shape = list(whole[:2])
    shape.insert(1 if call.first else 0, experts)
    found = _run(
        call,
        functools.partial(bodies.of_weights, tile, down, call.first > 0),
        (visits.start_E, visits.end_E, left, right),
        jax.ShapeDtypeStruct(tuple(shape), x_CD.dtype),
        programs=experts * down * across,
        flops=2 * made * math.prod(tile.filled()[:2]),
        elements=math.prod(shape),
    )
    return jnp.moveaxis(found, 0, call.first)


def _run(
    call: _Call,
    body: Callable[..., None],
    operands: tuple[Array, ...],
    out: jax.ShapeDtypeStruct,
    *,
    programs: int,
    flops: int,
    elements: int,
) -> Array:
    """The kernel, which says what it does where rows are as many as in the mean.

    Args:
      programs: how many. flops: of them all. elements: of the result, that are made.
    """
    return pl.pallas_call(
        body,
        out_shape=out,
        grid=(programs,),
        compiler_params=triton.CompilerParams(WARPS, STEPS_AHEAD),
        metadata={"flops": str(flops), "elements": str(elements)},
        interpret=call.interpret,
        name="grouped",
    )(*operands)
