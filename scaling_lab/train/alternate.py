"""Gradients of a pipeline whose stages alternate: the loss is made between them.

A family's `hidden` is taken apart at its stack: once as what comes before, once as what
comes after. The stack is the only verb that is not said twice; what a half does not
need of the other is dead code, which the compiler drops. Stages alternate over the last
kind of layers; those before it, a few dense ones as a rule, come before.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from scaling_lab import dims
from scaling_lab.layouts import Placement, alternate, through_stages, within_stage
from scaling_lab.parallel import chunks

Array = jax.Array
Metrics = Mapping[str, Any]
Stack = Callable[[Any, Array, Any], tuple[Array, Any]]
Loss = Callable[[Placement, Any, Metrics], tuple[Array, Metrics]]


def gradients(
    place: Placement, params: Any, batch: Metrics, parts_M: Metrics, loss: Loss
) -> tuple[Any, dict[str, Any]]:
    """Gradients of the whole batch's loss, and its metrics.

    Args:
      parts_M: the batch as microbatches.
      loss: ``(place, params, microbatch) -> (loss, metrics)``, to be summed over
        microbatches; it runs the whole model.
    """
    seen: dict[str, Any] = {}

    def before(params: Any) -> Any:
        def stack(segments: Any, x_BTD: Array, per_batch: Any) -> Any:
            *others, last = segments
            x_BTD, auxes = through_stages(place, others, x_BTD, per_batch)
            if jax.tree.leaves(auxes):
                raise ValueError(
                    "layers before the last kind say something beside their result, "
                    "which stages that alternate do not carry; leave +1f1b or "
                    "+zero_bubble out"
                )
            seen.update(block=last.block, per_batch=per_batch, x_BTD=x_BTD)
            seen.update(layers=last.params, auxes=auxes)
            return x_BTD, []

        apart = _at_its_stack(place, stack, lambda segments, x_BTD, _: (x_BTD, []))
        loss(apart, params, batch)
        layers = {id(leaf) for leaf in jax.tree.leaves(seen["layers"])}
        flat = dims.leaves(params).items()
        seen["ends"] = [path for path, leaf in flat if id(leaf) not in layers]
        return (seen["x_BTD"], seen["layers"]), seen["per_batch"]

    (x_BTD, layers), back, per_batch = jax.vjp(before, params, has_aux=True)
    flat = dims.leaves(params)
    ends = {path: flat[path] for path in seen["ends"]}
    block, auxes = seen["block"], seen["auxes"]

    def after(x_BTD: Array, aux: Any, number: Array) -> Any:
        part = {key: chunks.pick(a_MBT, number) for key, a_MBT in parts_M.items()}

        def one(ends: Any, x_BTD: Array, aux: Any) -> Any:
            further = dataclasses.replace(within_stage(place), stack_with=None)
            apart = _at_its_stack(
                place,
                lambda *_: (x_BTD, [*auxes, aux]),
                lambda *stacked: further.stack(*stacked)[:2],
            )
            return loss(apart, _with(params, ends), part)

        compute = jax.value_and_grad(one, (0, 1, 2), has_aux=True)
        (_, metrics), (own, *back) = compute(ends, x_BTD, aux)
        return (metrics, _on_grads(place, own)), tuple(back)

    (metrics, own), d_layers, d_BTD = alternate(
        place, (block, layers), after, (x_BTD, per_batch)
    )
    (found,) = back((d_BTD, d_layers))
    total = dims.leaves(found)
    return _with(found, {path: total[path] + own[path] for path in own}), metrics


def _at_its_stack(place: Placement, trunk: Stack, further: Stack) -> Placement:
    """A placement that does one thing for a model's layers, and another for more.

    Args:
      further: for what is stacked after the layers, as by a second head.
    """
    calls = itertools.count()

    def stack(segments: Any, x_BTD: Array, per_batch: Any) -> Any:
        chosen = further if next(calls) else trunk
        return chosen(segments, x_BTD, per_batch)

    return dataclasses.replace(place, stack_with=stack)


def _on_grads(place: Placement, own: Mapping[str, Array]) -> dict[str, Array]:
    def one(path: str, leaf: Array) -> Array:
        name = path.rpartition("/")[2]
        return place.constrain(leaf, "grads", dims.letters(name), name)

    return {path: one(path, leaf) for path, leaf in own.items()}


def _with(params: Mapping[str, Any], changed: Mapping[str, Any], prefix: str = ""):
    """The parameters with those of some paths replaced."""
    return {
        key: _with(value, changed, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else changed.get(f"{prefix}{key}", value)
        for key, value in params.items()
    }
