"""Moments in fewer bits than they are computed in: bfloat16, or 8 bits.

In 8 bits each block of a moment has one scale, its largest magnitude, and codes that
are dense near zero (Dettmers et al. 2021, "8-bit Optimizers via Block-wise
Quantization", sections 2 and 3): an outlier costs the rest of its block and no more.
Their code is a table; here it is a power, which a chip computes where it would have to
look a table up: a first moment is its scale times the square of its code, a second
moment, whose root Adam takes, times the fourth power. Theirs are blocks of 2048 of the
numbers in a line; here they are of at most 256 of a row, along a dim that layouts
seldom divide, so they are the same whoever holds them (`block`).

Norms and biases keep float32; they are few.
"""

from __future__ import annotations

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
#: Most numbers that share a scale.
BLOCK = 256
#: Fewest that a row is cut into: a scale is four bytes.
LEAST = 32
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
        return pack(optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        new, wide = optimizer.update(updates, unpack(state), params)
        return new, pack(wide)

    return optax.GradientTransformation(init, update)


def block(row: int) -> int:
    """How many numbers of a row share a scale; they divide it.

    A row that is no longer than `BLOCK` is one block, and so is one that nothing from
    `LEAST` to `BLOCK` divides. Of what does, more than half of `BLOCK` is preferred,
    then what leaves the most factors of two to the number of blocks: meshes have axes
    of powers of two, and a block should not lie across two devices.
    """
    if row <= BLOCK:
        return row
    sizes = [size for size in range(LEAST, BLOCK + 1) if row % size == 0]

    def worth(size: int) -> tuple[bool, int, int]:
        count = row // size
        return 2 * size > BLOCK, count & -count, size

    return max(sizes, key=worth, default=row)


def encode(moment: Array, axis: int, *, second: bool) -> tuple[Array, Array]:
    """``(codes, scale)`` of a moment, rows along an axis: there the scale has blocks.

    A second moment that is not zero does not become zero: Adam divides by its root.
    """
    shape = moment.shape
    moment = _cut(moment, axis, shape[axis] // block(shape[axis]))
    scale = jnp.max(jnp.abs(moment), axis=axis + 1, keepdims=True)
    share = jnp.abs(moment) / jnp.where(scale == 0, 1.0, scale)
    if second:
        codes = jnp.round(255 * jnp.sqrt(jnp.sqrt(share)))
        codes = jnp.maximum(codes, moment > 0).astype(jnp.uint8)
    else:
        codes = jnp.round(127 * jnp.sqrt(share)) * jnp.sign(moment)
        codes = codes.astype(jnp.int8)
    return codes.reshape(shape), jnp.squeeze(scale, axis + 1)


def decode(codes: Array, scale: Array, axis: int) -> Array:
    """The inverse of `encode`, in float32."""
    root = _cut(codes, axis, scale.shape[axis]).astype(jnp.float32)
    if codes.dtype == jnp.uint8:
        share = jnp.square(jnp.square(root / 255))
    else:
        share = jnp.square(root / 127) * jnp.sign(root)
    return (share * jnp.expand_dims(scale, axis + 1)).reshape(codes.shape)


def _cut(rows: Array, axis: int, blocks: int) -> Array:
    """Rows along an axis as so many blocks, and the places in one beside it."""
    shape = rows.shape
    return rows.reshape(*shape[:axis], blocks, -1, *shape[axis + 1 :])


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
            second = "nu" in dims.keys(path)
            leaf, scale = encode(leaf, _axis(path), second=second)
        codes.append(leaf)
        scales.append(scale)
    return Narrowed(tree.unflatten(codes), tree.unflatten(scales))


def _decode(state: Narrowed) -> Any:
    flat, tree = jax.tree_util.tree_flatten_with_path(state.codes)
    scales = tree.flatten_up_to(state.scales)
    wide = [
        codes if scale is None else decode(codes, scale, _axis(path))
        for (path, codes), scale in zip(flat, scales, strict=True)
    ]
    return tree.unflatten(wide)


def _is_moment(path: Any) -> bool:
    """Whether a path of a state ends at a matrix of the model."""
    name = getattr(path[-1], "key", None) if path else None
    return isinstance(name, str) and "_" in name and is_matrix(name)


def _axis(path: Any) -> int:
    letters = dims.letters(path[-1].key)
    return letters.index(along(letters))
