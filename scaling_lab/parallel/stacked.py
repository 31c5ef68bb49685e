"""Attention of several stages at once: their sequences are more rows of one batch.

Stages of a pipeline are mapped over (`parallel.pipeline`), and what is mapped over must
say what it does to stacked arrays. A kernel's own rule may be missing, or ask for more
than the kernel: JAX's rule for cuDNN wants a stacked mask written out for every head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab.parallel.attention import Attend
from scaling_lab.parallel.masks import Mask

Array = jax.Array


def as_sequences(attend: Attend) -> Attend:
    """`attend` to which whatever `jax.vmap` stacks is more sequences.

    Its backward pass makes the forward kernel's residuals again. Where a layer is made
    again in any case the two are one call to the compiler; where it is not, that is one
    forward pass of attention more.
    """

    def differentiated(arrays: Any, mask: Mask) -> tuple[Array, Callable[..., Any]]:
        return jax.vjp(lambda q, k, v: attend(q, k, v, mask), *arrays)

    # The forward pass is differentiated too, so that it is the backward pass's call.
    forward = _as_rows(lambda arrays, mask: differentiated(arrays, mask)[0])
    backward = _as_rows(lambda arrays, mask, d: differentiated(arrays, mask)[1](d))

    @jax.custom_vjp
    def stacked(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Array:
        return forward((q_BTNH, k_BSKH, v_BSKH), mask)

    def keeping(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Any:
        arrays = (q_BTNH, k_BSKH, v_BSKH)
        return forward(arrays, mask), (arrays, mask)

    stacked.defvjp(keeping, lambda kept, d_BTNH: (*backward(*kept, d_BTNH), None))
    return stacked


def _as_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays that all begin with B, to which a stack is a longer B."""
    folded = jax.custom_batching.custom_vmap(function)

    @folded.def_vmap
    def _(size: int, is_stacked: Any, *given: Any) -> tuple[Any, Any]:
        def fold(array: Array, stacked: bool) -> Array:
            every = array if stacked else jnp.broadcast_to(array, (size, *array.shape))
            return every.reshape(-1, *every.shape[2:])

        found = folded(*jax.tree.map(fold, given, tuple(is_stacked)))
        found = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), found)
        return found, jax.tree.map(lambda _: True, found)

    return folded
