"""Optimizer state that rests in the host's memory and comes for its update.

It comes layer by layer in a loop and goes back in place, so a device holds one layer's
moments at a time (Ren et al. 2021, "ZeRO-Offload", which updates on the host; here the
device does, which needs no processor beside it). What is in no stack of layers comes
whole, before the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import MaskedNode

from scaling_lab import dims
from scaling_lab.layouts import Layout

Array = jax.Array
Update = Callable[[Any, Any, Any], tuple[Any, Any]]

#: The kind of memory that the state rests in.
HOST = "pinned_host"


def is_away(layout: Layout) -> bool:
    """Whether a layout keeps optimizer state in the host's memory."""
    return layout.mechanism("optimizer", "device") == "host"


def updated(
    update: Update, gradients: Any, state: Any, params: Any, sound: Array
) -> tuple[Any, Any]:
    """What ``update(gradients, state, params)`` returns, of a state that is away.

    Args:
      sound: unless it is true, the state is left as it is; an array that is away can be
        looked at nowhere else.

    Returns:
      updates, and the state, away again.
    """
    depths = _depths(params)
    found = [
        _of_layers(update, parts, depth, sound)
        for depth in sorted(set(depths.values()))
        for parts in [
            [_only(tree, depths, depth) for tree in (gradients, state, params)]
        ]
    ]
    updates, states = zip(*found, strict=True)
    return _merged(updates), _merged(states)


def _of_layers(
    update: Update, parts: list[Any], depth: int, sound: Array
) -> tuple[Any, Any]:
    """The update of parameters with so many layers, or (0) with none."""
    gradients, state, params = parts
    if not depth:
        return _here(update, gradients, state, params, sound)
    moments, rest = _split(state)

    def body(layer: Array, carry: Any) -> Any:
        updates, moments = carry

        def cut(tree: Any) -> Any:
            return jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, layer, 1), tree
            )

        whole = _merged([cut(moments), rest])
        found = _here(update, cut(gradients), whole, cut(params), sound)
        own = (found[0], _split(found[1])[0])
        return jax.tree.map(
            lambda a, part: jax.lax.dynamic_update_slice_in_dim(a, part, layer, 0),
            (updates, moments),
            own,
        )

    wide = jax.tree.map(lambda a: a.astype(jnp.float32), gradients)
    updates, moments = jax.lax.fori_loop(0, depth, body, (wide, moments))
    return updates, moments


def _here(
    update: Update, gradients: Any, state: Any, params: Any, sound: Array
) -> tuple[Any, Any]:
    """One update on the device, its state brought and sent back."""
    near = _moved(state, jax.memory.Space.Device)
    updates, new = update(gradients, near, params)
    new = jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, near)
    return updates, _moved(new, jax.memory.Space.Host)


def _moved(state: Any, space: Any) -> Any:
    def one(path: Any, leaf: Array) -> Array:
        return leaf if _letters(path) is None else jax.device_put(leaf, space)

    return jax.tree.map_with_path(one, state)


def _letters(path: Any) -> str | None:
    """The dims of the parameter that a path ends at; ``None`` of a counter's."""
    name = getattr(path[-1], "key", None) if path else None
    return dims.letters(name) if isinstance(name, str) and "_" in name else None


def _depths(params: Any) -> dict[str, int]:
    """Of every parameter how many layers it is stacked of; 0 without a stack."""
    return {
        path: leaf.shape[0] * dims.letters(path.rpartition("/")[2]).startswith("L")
        for path, leaf in dims.leaves(params).items()
    }


def _only(tree: Any, depths: dict[str, int], depth: int) -> Any:
    """The tree without what belongs to parameters of another depth."""

    def one(path: Any, leaf: Any) -> Any:
        keys = dims.keys(path)
        ends = ("/".join(keys[i:]) for i in range(len(keys)))
        own = next((depths[end] for end in ends if end in depths), depth)
        return leaf if own == depth else None

    return jax.tree.map_with_path(one, tree, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
    """Whether an optimizer of other parameters stands aside here: no array, no leaf."""
    return isinstance(node, MaskedNode)


def _split(state: Any) -> tuple[Any, Any]:
    """What is of parameters, and the counters beside it."""
    moments = jax.tree.map_with_path(
        lambda path, leaf: None if _letters(path) is None else leaf, state
    )
    rest = jax.tree.map_with_path(
        lambda path, leaf: leaf if _letters(path) is None else None, state
    )
    return moments, rest


def _merged(trees: Any) -> Any:
    """One tree of several that lack different leaves; of what two have, the first's."""

    def first(*leaves: Any) -> Any:
        return next((leaf for leaf in leaves if leaf is not None), None)

    return jax.tree.map(first, *trees, is_leaf=lambda n: n is None or _is_masked(n))
