"""A segment's layers as chunks: which layer is where, and one chunk on one microbatch.

Stage s of Z holds the chunks s, s + Z, s + 2Z, … in the order of layers, and chunks
differ by one layer at most. A chunk that is shorter than the longest has a place whose
layer changes nothing: the stages go in step, so the longest sets the pace anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.parallel import keeping
from scaling_lab.parallel.verbs import Batch

Array = jax.Array


class Plan(NamedTuple):
    """How the layers of one segment go over the stages.

    Attributes:
      mesh: of all arrays.
      rows: for B, T and D of what is handed on, the mesh axes it is divided over.
      tokens: for B and T of what is known of a token, the same.
      replicas: copies of every stage, each with sequences of its own (R); where there
        are several, `rows` and `tokens` begin with R.
      stages: how many (Z). microbatches: of a step (M).
      virtual: chunks of layers on one stage.
      depth: layers, of all stages together.
      unroll: the layers of a chunk are written out.
    """

    mesh: Any
    rows: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[str, ...], ...]
    stages: int
    microbatches: int
    virtual: int
    depth: int
    unroll: bool = False
    replicas: int = 1

    @property
    def even(self) -> bool:
        """Whether every chunk has as many layers."""
        return self.depth % (self.stages * self.virtual) == 0

    @property
    def longest(self) -> int:
        """Layers of the longest chunk; a shorter one lets some pass unchanged."""
        return -(-self.depth // (self.stages * self.virtual))


def chunk_of(
    plan: Plan, block: Callable[..., tuple[Array, Any, Any]], policy: str, compute: Any
) -> Callable[..., tuple[Array, Any]]:
    """One chunk of layers on one microbatch, for `run`.

    Args:
      block: one layer, with what its backward pass keeps decided.
      compute: dtype that weights are used in.
    """

    def layer(per_batch: Batch, x_BTD: Array, step: Any) -> Any:
        params, exists = step
        x_BTD = checkpoint_name(x_BTD, keeping.INPUT)
        new_BTD, aux, _ = block(params, x_BTD, per_batch, None)
        if not plan.even:
            new_BTD = jnp.where(exists, new_BTD, x_BTD)
            aux = jax.tree.map(lambda a: jnp.where(exists, a, jnp.zeros_like(a)), aux)
        return new_BTD, aux

    def stage(params: Any, chunk: Array, exists_vl: Array, x_BTD: Array, per_batch):
        params = {
            name: _own(a_vl, chunk, compute if _is_cast(name) else a_vl.dtype)
            for name, a_vl in params.items()
        }
        x_BTD, aux = jax.lax.scan(
            functools.partial(layer, per_batch),
            x_BTD,
            (params, pick(exists_vl, chunk)),
            unroll=plan.longest if plan.unroll else 1,
        )
        return x_BTD, jax.tree.map(lambda a: jnp.sum(a, 0), aux)

    # Forward and backward are loops of their own: nothing there can be made one.
    kept = keeping.of_chunk(policy)
    return jax.checkpoint(stage, policy=kept, prevent_cse=False)


def arrange(plan: Plan, array: Array) -> Array:
    """A stacked parameter ``(L, …)`` as ``(Z, v, l, …)``: chunk s + Z·j is [s, j]."""
    rest = array.shape[1:]
    if plan.even:
        array = array.reshape(plan.virtual, plan.stages, plan.longest, *rest)
        return jnp.swapaxes(array, 0, 1)
    number_Zvl = _numbers(plan).reshape(-1)
    taken = jnp.take(array, number_Zvl, 0, mode="clip")
    return taken.reshape(plan.stages, plan.virtual, plan.longest, *rest)


def _sizes(plan: Plan) -> np.ndarray:
    """Layers of every chunk, in order; none where a segment has fewer than stages."""
    chunk = np.arange(plan.stages * plan.virtual)
    return plan.depth // len(chunk) + (chunk < plan.depth % len(chunk))


def _numbers(plan: Plan) -> np.ndarray:
    """For every stage, chunk and place in it the number of its layer."""
    sizes = _sizes(plan)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    number = starts[:, None] + np.arange(plan.longest)
    number = number.reshape(plan.virtual, plan.stages, plan.longest)
    return np.minimum(number, plan.depth - 1).swapaxes(0, 1)


def exists(plan: Plan) -> np.ndarray:
    """Whether there is a layer at a stage, chunk and place in it."""
    if plan.even:
        return np.ones((plan.stages, plan.virtual, plan.longest), bool)
    exists = np.arange(plan.longest) < _sizes(plan)[:, None]
    return exists.reshape(plan.virtual, plan.stages, -1).swapaxes(0, 1)


def _is_cast(name: str) -> bool:
    """Not what routers decide by, nor scales, to which families add before the cast."""
    letters = name.rpartition("_")[2]
    return letters.isupper() and len(letters) > 1 and not name.startswith("router")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _own(stacked_v: Array, chunk: Array, compute: Any) -> Array:
    """A chunk's weights, as they are used.

    By hand, so that the policy of what is kept sees one thing, that moves an array.
    """
    return pick(stacked_v, chunk).astype(compute)


def _own_forward(stacked_v, chunk, compute):
    like = jnp.zeros((len(stacked_v), 0), stacked_v.dtype)
    return _own(stacked_v, chunk, compute), (chunk, like)


def _own_backward(compute, residuals, gradient):
    del compute
    chunk, like_v = residuals
    gradient = gradient.astype(like_v.dtype)
    if len(like_v) == 1:
        return gradient[None], None
    number_v = jnp.arange(len(like_v)).reshape(-1, *(1,) * gradient.ndim)
    return jnp.where(number_v == chunk, gradient[None], 0), None


_own.defvjp(_own_forward, _own_backward)


def pick(array: Array, number: Array) -> Array:
    """One row, by its number."""
    if len(array) == 1:
        return array[0]
    return jax.lax.dynamic_index_in_dim(array, number, 0, keepdims=False)
