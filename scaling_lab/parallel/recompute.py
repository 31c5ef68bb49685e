"""A stack that keeps each layer's input alone and makes the rest again (remat full).

The rule is Chen et al. 2016, section 4, with two wastes left out of what
`jax.checkpoint` around a scanned block does. The last layer's weights stay gathered:
its backward pass follows at once. And going forward no layer makes what only a backward
pass needs, such as attention's normalisers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling_lab.parallel.verbs import Batch

Array = jax.Array


class Layers(NamedTuple):
    """The layers to be run.

    Attributes:
      block: ``(params, x_BTD, per_batch, cache) -> (x_BTD, aux, cache)``.
      last: the same for the last layer, with what of it is kept decided.
      rest: places a tree of stacked gradients where they rest.
      together: layers in one turn of the loops.
    """

    block: Callable[..., tuple[Array, Any, Any]]
    last: Callable[..., tuple[Array, Any, Any]]
    rest: Callable[[Any], Any]
    together: int = 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(
    layers: Layers, stacked: Any, x_BTD: Array, per_batch: Batch
) -> tuple[Array, Any]:
    """Runs the layers; the backward pass runs each once more.

    Args:
      stacked: parameters with a leading L; `per_batch` is taken to be constant.

    Returns:
      The last layer's result, and the sum of what they say beside it.
    """
    x_BTD, (_, auxes) = _up_to_last(layers, stacked, x_BTD, per_batch)
    out_BTD, aux = _one(layers.block, per_batch, _at(stacked, -1), x_BTD)
    return out_BTD, _added(auxes, aux)


def _forward(layers: Layers, stacked: Any, x_BTD: Array, per_batch: Batch) -> Any:
    x_BTD, (inputs_LBTD, auxes) = _up_to_last(layers, stacked, x_BTD, per_batch)
    last = functools.partial(_one, layers.last, per_batch)
    (out_BTD, aux), back = jax.vjp(last, _at(stacked, -1), x_BTD)
    return (out_BTD, _added(auxes, aux)), (stacked, inputs_LBTD, per_batch, back)


def _backward(layers: Layers, residuals: Any, cotangents: tuple[Array, Any]) -> Any:
    stacked, inputs_LBTD, per_batch, back = residuals
    of_aux = cotangents[1]
    depth = _depth(stacked)

    def body(carry: Any, step: Any) -> Any:
        gradients, x_BTD = carry
        i, input_BTD = step
        one = functools.partial(_one, layers.block, per_batch)
        _, back = jax.vjp(one, _at(stacked, i), input_BTD)
        own, x_BTD = back((x_BTD, of_aux))
        return (layers.rest(_put(gradients, own, i)), x_BTD), None

    own, x_BTD = back(cotangents)
    zeros = layers.rest(jax.tree.map(jnp.zeros_like, stacked))
    carry = (layers.rest(_put(zeros, own, depth - 1)), x_BTD)
    steps = (jnp.arange(depth - 1), inputs_LBTD)
    (gradients, x_BTD), _ = jax.lax.scan(
        body, carry, steps, reverse=True, unroll=layers.together
    )
    return gradients, x_BTD, None


scan.defvjp(_forward, _backward)


def _up_to_last(layers: Layers, stacked: Any, x_BTD: Array, per_batch: Batch) -> Any:
    """The last layer's input; every layer's before it, and what they say beside it."""

    def body(x_BTD: Array, i: Array) -> Any:
        out_BTD, aux = _one(layers.block, per_batch, _at(stacked, i), x_BTD)
        return out_BTD, (x_BTD, aux)

    before = jnp.arange(_depth(stacked) - 1)
    return jax.lax.scan(body, x_BTD, before, unroll=layers.together)


def _one(
    block: Callable[..., Any], per_batch: Batch, params: Any, x_BTD: Array
) -> tuple[Array, Any]:
    return block(params, x_BTD, per_batch, None)[:2]


def _depth(stacked: Any) -> int:
    return len(jax.tree.leaves(stacked)[0])


def _at(stacked: Any, i: Any) -> Any:
    """Layer i, cut where it is used: slicing the stack would copy it."""

    def one(stack: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(stack, i, 0, keepdims=False)

    return jax.tree.map(one, stacked)


def _put(stacked: Any, layer: Any, i: Any) -> Any:
    def one(stack: Array, own: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(stack, own, i, 0)

    return jax.tree.map(one, stacked, layer)


def _added(auxes_L: Any, aux: Any) -> Any:
    return jax.tree.map(lambda some, one: jnp.sum(some, 0) + one, auxes_L, aux)
