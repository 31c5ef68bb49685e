"""What gradients do to parameters and to the optimizer's state."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scaling_lab import optimizers
from scaling_lab.layouts import ExplicitPlacement, Placement
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.train import away

Array = jax.Array


class Facts(NamedTuple):
    """What an update knows beside its trees.

    Attributes:
      step: its number. norm: of all gradients, by which they are clipped.
      sound: unless it is true, nothing changes.
    """

    step: Array
    norm: Array
    sound: Array


class Trees(NamedTuple):
    """What an update works on, all of it resting where the state does."""

    gradients: Any
    state: Any
    params: Any


def updated(
    place: Placement,
    config: OptimizerConfig,
    optimizer: optax.GradientTransformation,
    facts: Facts,
    trees: Trees,
) -> tuple[Any, Any]:
    """``(state, params)`` after an update; the same as before unless it is sound."""
    if away.is_away(place.layout):
        return _updated_away(config, optimizer, facts, trees)
    change: Any = functools.partial(_changed, config, optimizer)
    if optimizers.alike(config):
        change = optimizers.in_blocks(change)
    if isinstance(place, ExplicitPlacement):
        # Orthogonalisation and factored moments have no sharding-in-types rules.
        like = jax.tree.map(_sharding_of, (trees.state, trees.params))
        change = jax.sharding.auto_axes(change, out_sharding=like)
    return change(facts, trees)


def _changed(
    config: OptimizerConfig,
    optimizer: optax.GradientTransformation,
    facts: Facts,
    trees: Trees,
) -> tuple[Any, Any]:
    """All an update does, number by number: one pass over what is in memory."""
    gradients, state, params = trees
    update: Any = optimizer.update
    updates, new = update(_clipped(config, facts, gradients), state, params)
    found = (new, optimizers.applied(params, updates, facts.step))
    return _kept(facts.sound, found, (state, params))


def _updated_away(
    config: OptimizerConfig,
    optimizer: optax.GradientTransformation,
    facts: Facts,
    trees: Trees,
) -> tuple[Any, Any]:
    gradients, state, params = trees
    gradients = _clipped(config, facts, gradients)
    updates, state = away.updated(
        optimizer.update, gradients, state, params, facts.sound
    )
    found = optimizers.applied(params, updates, facts.step)
    return state, _kept(facts.sound, found, params)


def _clipped(config: OptimizerConfig, facts: Facts, gradients: Any) -> Any:
    if config.clip is None:
        return gradients
    scale = jnp.minimum(1.0, config.clip / (facts.norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * scale, gradients)


def _kept(sound: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, old)


def _sharding_of(array: Array) -> Any:
    return jax.typeof(array).sharding
