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
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.parallel.attention import RESIDUAL, Attend
from scaling_lab.parallel.keeping import named
from scaling_lab.parallel.masks import Mask

Array = jax.Array


def as_sequences(attend: Attend, residuals: tuple[str, ...] = (RESIDUAL,)) -> Attend:
    """`attend` to which whatever `jax.vmap` stacks is more sequences.

    What the kernel makes for its backward pass goes from one pass to the other under
    the kernel's own name, so that a policy keeps it or not, as it would unstacked. The
    backward pass traces the kernel's forward pass again, of which nothing is then used.

    Args:
      residuals: names by which kernels keep what they make.
    """

    def traced(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Any:
        result, back = jax.vjp(
            lambda q, k, v: attend(q, k, v, mask), q_BTNH, k_BSKH, v_BSKH
        )
        return [result, *jax.tree.leaves(back)], jax.tree.structure(back)

    def made_forward(*given: Any) -> list[Array]:
        arrays, _ = traced(*given)
        return [arrays[place] for place in _made(traced, given, residuals)]

    def made_backward(given: Any, kept: list[Array], d_BTNH: Array) -> Any:
        arrays, structure = traced(*given)
        places = _made(traced, given, residuals)
        for array, same in zip(kept, places.values(), strict=True):
            for place in same:
                arrays[place] = array
        return jax.tree.unflatten(structure, arrays[1:])(d_BTNH)

    forward, backward = _as_rows(made_forward), _as_rows(made_backward)

    @jax.custom_vjp
    def stacked(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Array:
        return forward(q_BTNH, k_BSKH, v_BSKH, mask)[0]

    def keeping(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Any:
        given = (q_BTNH, k_BSKH, v_BSKH, mask)
        kept = [checkpoint_name(array, residuals[0]) for array in forward(*given)]
        return kept[0], (given, kept)

    stacked.defvjp(keeping, lambda kept, d_BTNH: (*backward(*kept, d_BTNH), None))
    return stacked


def _made(
    function: Callable[..., Any], given: Any, residuals: tuple[str, ...]
) -> dict[int, list[int]]:
    """Of a list of arrays the first, and which its kernel makes: first place -> all.

    Args:
      function: of `given` a list of arrays, and more.
    """
    steps = jax.make_jaxpr(lambda *g: function(*g)[0])(*given).jaxpr
    made = {
        id(result)
        for step in steps.eqns
        if named(residuals, step.primitive, **step.params)
        for result in step.outvars
    }
    same: dict[int, list[int]] = {}
    for place, result in enumerate(steps.outvars):
        if place == 0 or id(result) in made:
            same.setdefault(id(result), []).append(place)
    return {places[0]: places for places in same.values()}


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
