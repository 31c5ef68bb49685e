"""Running the layers: scanned one by one or in groups, or written out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab import dims
from scaling_lab.parallel import recompute
from scaling_lab.parallel.keeping import GATHERED, Block, Remats
from scaling_lab.parallel.verbs import Batch, Segment

Array = jax.Array


def loops(segment: Segment, turn: int) -> bool:
    """Whether layers in turns of so many are a loop, and nothing else.

    One turn alone is none, and layers that fill no turn are written out beside it.
    """
    depth = len(jax.tree.leaves(segment.params)[0])
    return depth > turn and depth % turn == 0


def scan(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    cache: Any,
    *,
    remats: Remats,
    together: int = 1,
):
    """The layers as one loop: compiled once, whatever the depth.

    Args:
      remats: where there are several, as many layers stand in one turn.
      together: layers in one turn, at least. What one moves (weights, results from the
        host) then hides behind what another computes, which a compiler sees no other
        way.
    """
    if len(remats) > 1 and cache is None:
        turns = max(1, together // len(remats))
        return _scan_groups(block, segment, x_BTD, per_batch, (remats, turns))
    block = remats[-1](block)

    def body(x_BTD, layer):
        params, cache = layer
        x_BTD, aux, cache = block(params, x_BTD, per_batch, cache)
        return x_BTD, (aux, cache)

    layers = (per_layer(segment.params), cache)
    x_BTD, (aux, cache) = jax.lax.scan(body, x_BTD, layers, unroll=together)
    return x_BTD, _total(aux), cache


def _scan_groups(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    how: tuple[Remats, int],
):
    """The layers in groups that stand in one turn, each layer under its own `remat`.

    Args:
      how: one `remat` for each layer of a group, and how many groups are in a turn.
    """
    remats, turns = how
    size = len(remats)

    def one_of(i: int) -> Block:
        def layer(params: Any, *inputs: Any) -> tuple[Array, Any, Any]:
            return block(_pick(*params, i), *inputs)

        return remats[i](layer)

    blocks = [one_of(i) for i in range(size)]

    def body(x_BTD, groups):
        still, group = groups
        auxes = []
        for one, own in zip(blocks, unstack(group, size), strict=True):
            x_BTD, aux, _ = one((still, own), x_BTD, per_batch, None)
            auxes.append(aux)
        return x_BTD, _total(_stack(auxes))

    groups = jax.tree.map(
        lambda a: a.reshape(-1, size, *a.shape[1:]), per_layer(segment.params)
    )
    both = (jax.lax.stop_gradient(groups), groups)
    x_BTD, aux = jax.lax.scan(body, x_BTD, both, unroll=turns)
    return x_BTD, _total(aux), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(stacked: Any, depth: int) -> list[Any]:
    """A tree of ``L…`` arrays as a list of trees.

    Its gradient stacks. The gradient of indexing would pad every layer's gradient to
    the full stack and add them up, depth times the traffic.
    """
    return [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(depth)]


def _unstack_forward(stacked, depth):
    return unstack(stacked, depth), None


def _unstack_backward(depth, _, cotangents):
    del depth
    return (_stack(cotangents),)


unstack.defvjp(_unstack_forward, _unstack_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pick(group: Any, own: Any, i: int) -> Any:
    """Layer i of a group, whose gradient goes to `own`, which is that layer too.

    So a backward pass that does the layer again reads the group, which its loop has
    anyway. Did it read `own`, a copy of the model would be kept for it; XLA drops what
    is kept and not read.
    """
    del own
    return jax.tree.map(lambda a: a[i], group)


def _pick_forward(group, own, i):
    return _pick(group, own, i), None


def _pick_backward(i, _, cotangent):
    del i
    return None, cotangent


_pick.defvjp(_pick_forward, _pick_backward)


def scan_inputs(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    rest: Callable[[Any], Any],
    together: int = 1,
):
    """`scan` that keeps the layers' inputs alone; see `recompute.scan`."""
    gathered = jax.checkpoint_policies.save_only_these_names(GATHERED)
    stacked = per_layer(segment.params)
    # One turn is no loop: what is made again there is taken for what was made before.
    turns = (len(jax.tree.leaves(stacked)[0]) - 1) // together
    last = jax.checkpoint(block, policy=gathered)
    layers = recompute.Layers(block, last, rest, together if turns > 1 else 1)
    scanned: Any = recompute.scan(layers, stacked, x_BTD, per_batch)
    x_BTD, aux = scanned
    return x_BTD, aux, None


def unroll(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    cache: Any,
    *,
    remats: Remats,
):
    """The layers written out: no loop carries, at the price of compile time."""
    depth = len(jax.tree.leaves(segment.params)[0])
    layers: Any = unstack(per_layer(segment.params), depth)
    caches = [jax.tree.map(lambda c, i=i: c[i], cache) for i in range(depth)]
    auxes, blocks = [], [wrap(block) for wrap in remats]
    for i, params in enumerate(layers):
        one = blocks[i % len(blocks)]
        x_BTD, aux, caches[i] = one(params, x_BTD, per_batch, caches[i])
        auxes.append(aux)
    return x_BTD, _total(_stack(auxes)), _stack(caches)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def per_layer(params: Mapping[str, Any]) -> dict[str, Any]:
    return {dims.unstacked(name): array for name, array in params.items()}


def _total(aux: Any) -> Any:
    return jax.tree.map(lambda a: jnp.sum(a, 0), aux)
