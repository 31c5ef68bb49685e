"""Moments in fewer bits than they are computed in: bfloat16, or 8 bits.

In 8 bits each block of a moment has one scale, its largest magnitude, and codes that
are dense near zero (Dettmers et al. 2021, "8-bit Optimizers via Block-wise
Quantization", sections 2 and 3): an outlier costs the rest of its block and no more.
Their code is a table; here it is a power, which a chip computes where it would have to
look a table up: a first moment is its scale times the square of its code, a second
moment, whose root Adam takes, times the fourth power. Theirs are blocks of 2048 of the
numbers in a line; here they are of 64 to 256 along one dim (`along`, `block`), the
same whoever holds them, and the whole row of a token or a position.

Norms and biases keep float32; they are few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scaling_lab import dims
from scaling_lab.names import one_of
from scaling_lab.optimizers.stacks import along, is_matrix

Array = jax.Array

KINDS = ("float32", "bfloat16", "int8")
#: Fewest and most numbers that a row is cut into to share a scale.
BLOCK, LARGEST = 64, 256
#: Codes of one byte on a side of a TPU's tile.
TILE = 32
#: Bytes of a moment's number, with its part of a scale.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1 + 4 / BLOCK}


class Narrowed(NamedTuple):
    """An optimizer's state with moments in 8 bits.

    Attributes:
      codes: the state, its moments as codes of one byte. scales: the same tree, of a
        moment one number for every block, of anything else nothing.
    """

    codes: Any
    scales: Any


def narrowed(
    optimizer: optax.GradientTransformation, kind: str
) -> optax.GradientTransformation:
    """The optimizer with its moments kept as `kind` between steps.

    Raises:
      ValueError: no such kind, with the nearest.
    """
    one_of("moments", kind, KINDS)
    if kind == "float32":
        return optimizer
    pack, unpack = (_cast, _widen) if kind == "bfloat16" else (_encode, _decode)

    def init(params: Any) -> Any:
        state = optimizer.init(params)
        return _first(state) if kind == "int8" else pack(state)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        new, wide = optimizer.update(updates, unpack(state), params)
        return new, pack(wide)

    return optax.GradientTransformation(init, update)


def block(row: int) -> int:
    """How many numbers of a row share a scale; they divide it.

    A row of at most twice `BLOCK` is one block, and so is one that cannot be cut. Else
    they are few, whole tiles if they can be, and there is a power of two of them: so
    devices, a power of two as well, hold as many blocks each, or a block is as many
    devices'. Otherwise a partitioner would bring whole moments together.
    """
    if row <= 2 * BLOCK:
        return row
    twos = row & -row
    sizes = [row // count for count in _powers(twos) if row // count <= LARGEST]
    sizes = [size for size in sizes if size >= BLOCK]
    return min([size for size in sizes if size % TILE == 0] or sizes, default=row)


def _powers(most: int) -> list[int]:
    """The powers of two up to one of them."""
    return [1 << power for power in range(most.bit_length())]


def in_blocks(change: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of arrays that are cut into blocks, for arrays that are not.

    All that an update does to a moment, its gradient and its parameter is then done in
    one shape. A reshape in the middle, free as it is, would part what the TPU's
    compiler makes one loop of, and each part would write its moment out in float32.

    Args:
      change: of trees of parameters, and of a `Narrowed` state, to such trees; an
        optimizer in it must treat every number alike (AdamW, Lion).
    """

    def whole(*trees: Any) -> Any:
        cut = jax.tree.map_with_path(_cut, trees)
        return jax.tree.map_with_path(_joined, change(*cut))

    return whole


def encode(moment: Array, axis: int, *, second: bool) -> tuple[Array, Array]:
    """``(codes, scale)`` of a moment whose blocks lie along an axis: there scale is 1.

    A second moment that is not zero does not become zero: Adam divides by its root.
    """
    scale = _largest(jnp.abs(moment), axis)
    share = jnp.abs(moment) / jnp.where(scale == 0, 1.0, scale)
    if second:
        codes = jnp.round(255 * jnp.sqrt(jnp.sqrt(share)))
        return jnp.maximum(codes, moment > 0).astype(jnp.uint8), scale
    codes = jnp.round(127 * jnp.sqrt(share)) * jnp.sign(moment)
    return codes.astype(jnp.int8), scale


def _largest(sizes: Array, axis: int) -> Array:
    """The maxima along an axis, which they keep.

    A GPU's compiler turns what it reduces, and all that made it, to have the axis last;
    what it only compares it leaves as it is.
    """
    reduced = functools.partial(jnp.max, axis=axis, keepdims=True)
    if axis == sizes.ndim - 1:
        return reduced(sizes)
    compared = functools.partial(_compared, axis=axis)
    return jax.lax.platform_dependent(
        sizes, cuda=compared, rocm=compared, default=reduced
    )


def _compared(sizes: Array, axis: int) -> Array:
    """The maxima along an axis, its first part against its second, and so on."""
    while (count := sizes.shape[axis]) > 1:
        half = count // 2
        first, second, odd = (
            jax.lax.slice_in_dim(sizes, start, stop, axis=axis)
            for start, stop in ((0, half), (half, 2 * half), (2 * half, count))
        )
        sizes = jnp.maximum(first, second)
        if count % 2:
            sizes = jnp.concatenate([sizes, odd], axis)
    return sizes


def decode(codes: Array, scale: Array) -> Array:
    """The inverse of `encode`, in float32."""
    root = codes.astype(jnp.float32)
    if codes.dtype == jnp.uint8:
        return jnp.square(jnp.square(root / 255)) * scale
    return jnp.square(root / 127) * jnp.sign(root) * scale


def cut(array: Array, axis: int) -> Array:
    """Rows along an axis as blocks, and the places in one beside them.

    Rows along the last axis stay whole: it lies in the lanes of a TPU's tiles, and to
    cut it moves every number. The barrier keeps the compiler from moving the reshape
    back among the arithmetic.
    """
    shape = array.shape
    size = block(shape[axis])
    if size == shape[axis] or axis == array.ndim - 1:
        return array
    blocks = array.reshape(*shape[:axis], -1, size, *shape[axis + 1 :])
    return jax.lax.optimization_barrier(blocks)


def _cut(path: Any, array: Array) -> Array:
    if not _is_moment(path) or "scales" in dims.keys(path):
        return array
    return cut(array, _axis(path))


def _joined(path: Any, array: Array) -> Array:
    """The inverse of `_cut`."""
    if not _is_moment(path) or not _is_cut(path, array):
        return array
    axis, shape = _axis(path), array.shape
    return array.reshape(*shape[:axis], -1, *shape[axis + 2 :])


def _is_cut(path: Any, array: Array) -> bool:
    return array.ndim > len(dims.letters(path[-1].key))


def _cast(state: Any) -> Any:
    return _mapped(state, lambda _, leaf: leaf.astype(jnp.bfloat16))


def _widen(state: Any) -> Any:
    return _mapped(state, lambda _, leaf: leaf.astype(jnp.float32))


def _mapped(state: Any, change: Callable[[Any, Array], Array]) -> Any:
    """The state with its moments changed."""

    def one(path: Any, leaf: Array) -> Array:
        return change(path, leaf) if _is_moment(path) else leaf

    return jax.tree.map_with_path(one, state)


def _encode(state: Any) -> Narrowed:
    flat, tree = jax.tree_util.tree_flatten_with_path(state)
    codes, scales = [], []
    for path, leaf in flat:
        scale = None
        if _is_moment(path):
            leaf, scale = _encoded(path, leaf)
        codes.append(leaf)
        scales.append(scale)
    return Narrowed(tree.unflatten(codes), tree.unflatten(scales))


def _first(state: Any) -> Narrowed:
    """`_encode` of a first state: its moments are zeros, and not looked at.

    XLA would find their scales while it compiles, number by number.
    """
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(_encode, state)
    )
    codes = jax.tree.map_with_path(
        lambda path, leaf, zero: zero if _is_moment(path) else leaf, state, zeros.codes
    )
    return Narrowed(codes, zeros.scales)


def _encoded(path: Any, moment: Array) -> tuple[Array, Array]:
    """Its codes, cut as it is, and its scales, which are as many as blocks."""
    was_cut, second = _is_cut(path, moment), "nu" in dims.keys(path)
    moment = moment if was_cut else _cut(path, moment)
    inside = _axis(path) + _is_cut(path, moment)
    codes, scale = encode(moment, inside, second=second)
    if _is_cut(path, codes):
        scale = jnp.squeeze(scale, inside)
    return codes if was_cut else _joined(path, codes), scale


def _decode(state: Narrowed) -> Any:
    flat, tree = jax.tree_util.tree_flatten_with_path(state.codes)
    scales = tree.flatten_up_to(state.scales)
    wide = [
        codes if scale is None else _decoded(path, codes, scale)
        for (path, codes), scale in zip(flat, scales, strict=True)
    ]
    return tree.unflatten(wide)


def _decoded(path: Any, codes: Array, scale: Array) -> Array:
    """The inverse of `_encoded`."""
    was_cut = _is_cut(path, codes)
    codes = codes if was_cut else _cut(path, codes)
    if _is_cut(path, codes):
        scale = jnp.expand_dims(scale, _axis(path) + 1)
    moment = decode(codes, scale)
    return moment if was_cut else _joined(path, moment)


def _is_moment(path: Any) -> bool:
    """Whether a path of a state ends at a matrix of the model."""
    name = getattr(path[-1], "key", None) if path else None
    return isinstance(name, str) and "_" in name and is_matrix(name)


def _axis(path: Any) -> int:
    letters = dims.letters(path[-1].key)
    return letters.index(along(letters))
