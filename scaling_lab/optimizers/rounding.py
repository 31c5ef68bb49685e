"""Parameters that rest in bfloat16, their gradients too, both rounded by chance.

A step is often smaller than half of bfloat16's spacing, as is a microbatch's gradient
beside the sum of many, and rounding to the nearest would lose it every time. Rounded up
with the probability of the part that is lost, it arrives in the mean (Gupta et al.
2015, "Deep Learning with Limited Numerical Precision", section 3). Chance is a function
of the step and the parameter's name, so every layout rounds alike. Norms and biases
stay in float32. A pipeline adds its microbatches up to the nearest.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scaling_lab import dims
from scaling_lab.optimizers.stacks import is_matrix

Array = jax.Array
Params = Mapping[str, Any]

#: How parameters may rest.
RESTING = ("float32", "bfloat16")


def resting(params: Params, dtype: str) -> Any:
    """Fresh parameters as they rest: matrices in that dtype."""

    def one(path: Any, leaf: Array) -> Array:
        return leaf.astype(dtype) if is_matrix(path[-1].key) else leaf

    return jax.tree.map_with_path(one, params)


def widened(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The optimizer, which sees parameters and gradients in float32."""

    def init(params: Any) -> Any:
        return optimizer.init(_wide(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return optimizer.update(_wide(updates), state, _wide(params))

    return optax.GradientTransformation(init, update)


def applied(params: Params, updates: Params, step: Array) -> Any:
    """Parameters after an update, resting as they did before it."""

    return summed(params, updates, jax.random.fold_in(jax.random.key(0), step))


def summed(total: Params, more: Params, key: Array) -> Any:
    """The sums of two trees, in the first one's dtypes."""

    def one(path: Any, leaf: Array, other: Array) -> Array:
        new = leaf.astype(jnp.float32) + other.astype(jnp.float32)
        if leaf.dtype != jnp.bfloat16:
            return new
        name = zlib.crc32("/".join(dims.keys(path)).encode())
        return rounded(new, jax.random.fold_in(key, name))

    return jax.tree.map_with_path(one, total, more)


def rounded(array: Array, key: Array) -> Array:
    """Float32 as bfloat16, up or down by chance, the nearer the likelier."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    lost = jax.random.bits(key, array.shape, jnp.uint16).astype(jnp.uint32)
    up = jax.lax.bitcast_convert_type(
        (bits + lost) & jnp.uint32(0xFFFF0000), jnp.float32
    )
    return jnp.where(jnp.isfinite(array), up, array).astype(jnp.bfloat16)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
