"""What a program of a GPU's grouped products does: one tile, of rows or of a weight."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from scaling_lab.parallel.experts.products import precision

Array = jax.Array

#: Tiles along one side that are made before the next along the other, so that what they
#: read stays in the cache.
TOGETHER = 16
#: Of a tile's side the first place, how many there are, and which are meant if not all.
Side = tuple[Any, int, Any]


class Tile(NamedTuple):
    """Sides of a tile, the depth of a step, and the whole lengths of all three."""

    sides: tuple[int, int, int]
    whole: tuple[int, int, int]

    def counts(self) -> tuple[int, int, int]:
        """How many there are along each."""
        rows, columns, depth = map(pl.cdiv, self.whole, self.sides)
        return rows, columns, depth

    def filled(self) -> tuple[int, int, int]:
        """The lengths that all of them cover."""
        (rows, columns, depth), (down, across, steps) = self.sides, self.counts()
        return rows * down, columns * across, depth * steps


def of_rows(tile: Tile, across: bool, middle: bool, *refs: Any) -> None:
    """One tile of rows: all of its depth, and its own rows written.

    Args:
      across: whether a weight's dims stand the other way round. middle: whether E
        stands between them.
    """
    expert_ref, first_ref, low_ref, high_ref, x_ref, weight_ref, out_ref = refs
    (block, columns, depth), (rows, width, deep) = tile
    visit, column = _turn(pl.program_id(0), tile.counts()[1])
    e, first, low, high = (
        ref[visit] for ref in (expert_ref, first_ref, low_ref, high_ref)
    )

    @pl.when(low < high)
    def _() -> None:
        begin = column * columns
        in_rows = _within(first, block, rows)
        in_width = _within(begin, columns, width)

        def step(number: Any, sum_CF: Array) -> Array:
            start = number * depth
            inside = _within(start, depth, deep)
            x_CD = _part(x_ref, (first, block, in_rows), (start, depth, inside))
            deeper, wider = (start, depth, inside), (begin, columns, in_width)
            if across:
                own_FD = _part(weight_ref, wider, deeper, e, middle)
                return sum_CF + _dot(x_CD, own_FD, trans_b=True)
            own_DF = _part(weight_ref, deeper, wider, e, middle)
            return sum_CF + _dot(x_CD, own_DF)

        zeros_CF = jnp.zeros((block, columns), jnp.float32)
        sum_CF = jax.lax.fori_loop(0, tile.counts()[2], step, zeros_CF)
        row_C = first + jnp.arange(block)
        own_C = (row_C >= low) & (row_C < high)
        _put(out_ref, (first, block, own_C), (begin, columns, in_width), sum_CF)


def of_weights(tile: Tile, down: int, middle: bool, *refs: Any) -> None:
    """One tile of an expert's gradient, over that expert's rows.

    Args:
      down: tiles from top to bottom, rounded up. middle: as of `of_rows`.
    """
    start_ref, end_ref, x_ref, d_ref, out_ref = refs
    (block, columns, step), (deep, width, _rows) = tile
    across = tile.counts()[1]
    e = pl.program_id(0) // (down * across)
    row, column = _turn(pl.program_id(0) % (down * across), across)
    start, end = start_ref[e], end_ref[e]
    top, left = row * block, column * columns
    in_deep, in_width = _within(top, block, deep), _within(left, columns, width)

    @pl.when(top < deep)
    def _() -> None:
        def add(number: Any, sum_DF: Array) -> Array:
            first = start + number * step
            own = first + jnp.arange(step) < end
            x_CD = _part(x_ref, (first, step, own), (top, block, in_deep))
            d_CF = _part(d_ref, (first, step, own), (left, columns, in_width))
            return sum_DF + _dot(x_CD, d_CF, trans_a=True)

        zeros_DF = jnp.zeros((block, columns), jnp.float32)
        turns = (end - start + step - 1) // step
        sum_DF = jax.lax.fori_loop(0, turns, add, zeros_DF)
        sides = (top, block, in_deep), (left, columns, in_width)
        _put(out_ref, *sides, sum_DF, e, middle)


def _turn(number: Any, across: int) -> tuple[Any, Any]:
    """Which tile is made in which turn: so many down, then the next column."""
    there = number % (TOGETHER * across)
    down = number // (TOGETHER * across) * TOGETHER
    return down + there % TOGETHER, there // TOGETHER


def _within(start: Any, size: int, whole: int) -> Any:
    """Which of some places are there; ``None`` where all always are."""
    return None if whole % size == 0 else start + jnp.arange(size) < whole


def _place(rows: Side, columns: Side, which: Any, middle: bool) -> tuple[Any, ...]:
    """Where a tile is; in an array of several of which one, said first or between."""
    down, across = pl.ds(*rows[:2]), pl.ds(*columns[:2])
    if which is None:
        return down, across
    return (down, which, across) if middle else (which, down, across)


def _part(
    ref: Any, rows: Side, columns: Side, which: Any = None, middle: bool = False
) -> Array:
    """A tile of an array; zeros where nothing is meant."""
    place = ref.at[_place(rows, columns, which, middle)]
    mask = _mask(rows, columns)
    return triton.load(place, mask=mask, other=None if mask is None else 0)


def _put(
    ref: Any,
    rows: Side,
    columns: Side,
    sum_CF: Array,
    which: Any = None,
    middle: bool = False,
) -> None:
    """A tile written, where something is meant."""
    place = ref.at[_place(rows, columns, which, middle)]
    triton.store(place, sum_CF.astype(ref.dtype), mask=_mask(rows, columns))


def _mask(rows: Side, columns: Side) -> Any:
    """Both sides' together; ``None`` where all of both is meant."""
    shape = rows[1], columns[1]
    found = [
        jnp.broadcast_to(jnp.expand_dims(meant, dim), shape)
        for dim, (_, _, meant) in ((1, rows), (0, columns))
        if meant is not None
    ]
    return functools.reduce(jnp.logical_and, found) if found else None


def _dot(left: Array, right: Array, **transposed: bool) -> Array:
    """Float32 means float32; sums are float32 always."""
    return triton.dot(left, right, precision=precision(left), **transposed)
