"""Parameters by their names: which are stacked, which are matrices, which is no weight.

An optimizer works on one layer, and one expert of it, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scaling_lab import dims

Params = Mapping[str, Any]

#: Dims that a row of a moment may run along, the least often divided first.
_ALONG = "HUPQRFKNDVTEI"


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix of one layer (not a bias, not a norm's scale)."""
    letters = dims.letters(name)[stacked(name) :]
    return len(letters) >= 2 and not dims.stem(name).endswith("bias")


def stacked(name: str) -> int:
    """How many leading dims number like arrays: layers, and a layer's experts."""
    letters = dims.letters(name)
    one = letters.removeprefix("L")
    return len(letters) - len(one) + (one.startswith("E") and len(one) > 1)


def along(letters: str) -> str:
    """The dim that a row of a moment runs along, by the moment's dims."""
    return min(letters[stacked(f"x_{letters}") :], key=_ALONG.index)


def is_balance(name: str) -> bool:
    """Whether a parameter is a router's bias, which load moves and no loss."""
    return dims.stem(name) == "router_bias"


def weights(params: Params) -> dict[str, Any]:
    """The parameters, or their gradients, that a loss moves."""
    return {
        key: weights(leaf) if isinstance(leaf, Mapping) else leaf
        for key, leaf in params.items()
        if isinstance(leaf, Mapping) or not is_balance(key)
    }


def balancing(
    optimizer: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
    """The optimizer for weights; against its excess load for a router's bias.

    Wang et al. 2024 ("Auxiliary-loss-free load balancing"), algorithm 1: a step of one
    size, whatever the excess.
    """

    def merged(updates: Any, gradients: Params) -> dict[str, Any]:
        return {
            key: merged(updates[key], leaf)
            if isinstance(leaf, Mapping)
            else jax.tree.map(lambda excess: -rate * jnp.sign(excess), leaf)
            if is_balance(key)
            else updates[key]
            for key, leaf in gradients.items()
        }

    def init(params):
        return optimizer.init(weights(params))

    def update(updates, state, params=None):
        own = None if params is None else weights(params)
        new, state = optimizer.update(weights(updates), state, own)
        return merged(new, updates), state

    return optax.GradientTransformation(init, update)


def state_dims(state: Any, params: Params) -> Any:
    """The dims of every array of an optimizer state, as a tree of letters.

    An array that belongs to a parameter and has its shape has its dims; a factored
    moment has them without the dim it was summed over; counters have none (``""``).

    Args:
      state: abstract state, as `jax.eval_shape` gives it. params: abstract parameters.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in dims.leaves(params).items()}

    def of(path: Any, leaf: Any) -> str:
        keys = dims.keys(path)
        owner = next(
            (p for p in shapes if keys[-len(p.split("/")) :] == p.split("/")), ""
        )
        if not owner:
            return ""
        letters = dims.letters(owner.rpartition("/")[2])
        kept = _summed_over(keys, letters, shapes[owner])
        sizes = dict(zip(letters, shapes[owner], strict=True))
        same = tuple(leaf.shape) == tuple(sizes[letter] for letter in kept)
        return kept if same else ""

    return jax.tree.map_with_path(of, state)


def _summed_over(keys: list[str], letters: str, shape: tuple[int, ...]) -> str:
    """Adafactor's row moments lack a matrix's largest dim, column moments the next.

    Scales of 8-bit moments lack the dim that their rows run along.
    """
    if "scales" in keys:
        return letters.replace(along(letters), "")
    if "v_row" not in keys and "v_col" not in keys:
        return letters
    alike = stacked(f"x_{letters}")
    order = np.argsort(shape[alike:])
    if len(order) < 2:
        return letters
    gone = order[-1] if "v_row" in keys else order[-2]
    gone = int(gone) + alike
    return letters[:gone] + letters[gone + 1 :]


def per_layer(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The optimizer on every layer of stacked parameters, and every expert, by itself.

    Its state holds the unstacked ones as ``ends``, each run of layers by its name, and
    their experts by that and ``_experts``.
    """

    def init(params):
        return {
            group: _mapped(optimizer.init, depth)(part)
            for group, (depth, part) in _groups_of(params).items()
        }

    def update(updates, state, params=None):
        assert params is not None
        own, found, after = _groups_of(params), {}, {}
        for group, (depth, part) in _groups_of(updates).items():
            one = _mapped(optimizer.update, depth)
            new, after[group] = one(part, state[group], own[group][1])
            found |= dims.leaves(new)
        return _like(params, found), after

    return optax.GradientTransformation(init, update)


def _mapped(function: Callable[..., Any], depth: int) -> Callable[..., Any]:
    for _ in range(depth):
        function = jax.vmap(function)
    return function


def _groups_of(params: Params) -> dict[str, tuple[int, dict[str, Any]]]:
    """Parameters that are stacked alike: how deep, and which."""
    groups: dict[str, tuple[int, dict[str, Any]]] = {"ends": (0, {})}
    for path, leaf in dims.leaves(params).items():
        words = path.split("/")
        letters = dims.letters(words[-1])
        depth = stacked(words[-1]) if letters.startswith("L") else 0
        run = "/".join(words[:-1]) or words[-1]
        group = ("ends", run, f"{run}_experts")[depth]
        inner = groups.setdefault(group, (depth, {}))[1]
        for word in words[:-1]:
            inner = inner.setdefault(word, {})
        inner[words[-1]] = leaf
    return groups


def _like(params: Params, found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _like(leaf, found, f"{prefix}{key}/")
        if isinstance(leaf, Mapping)
        else found[f"{prefix}{key}"]
        for key, leaf in params.items()
    }
