"""The train step: gradients, their reduction, the update, each placed by its table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from scaling_lab import dims, models, optimizers
from scaling_lab.config import RunConfig
from scaling_lab.layouts import Placement, alternates, stages_of
from scaling_lab.parallel.verbs import TokenLoss
from scaling_lab.train import alternate, update

Array = jax.Array
Metrics = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step turns into the next: the step's number, parameters, optimizer."""

    step: Array
    params: Any
    optimizer: Any


def make_train_step(
    config: RunConfig, place: Placement, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Metrics], tuple[TrainState, Metrics]]:
    """``(state, batch) -> (state, metrics)``, to be jitted.

    Gradients are reduced to the `grads` table, the update happens where the `optimizer`
    table says, and new parameters return to the `params` table: ZeRO-1, 2 and 3 are
    three choices of tables. A step whose gradient is not finite changes nothing but
    says so, so that the state before it is still there to be looked at.
    """

    def train_step(state: TrainState, batch: Metrics):
        batch = models.sight(config.model).counted(batch)
        gradients, metrics = _gradients(config, place, state, batch)
        norms = optimizers.square_norms(optimizers.weights(gradients))
        norm = jnp.sqrt(sum(norms.values()))
        with jax.named_scope("optimizer"):
            sound = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
            trees = update.Trees(
                on_table(place, "optimizer", gradients),
                state.optimizer,
                on_table(place, "optimizer", state.params),
            )
            facts = update.Facts(state.step, norm, sound)
            moments, params = update.updated(
                place, config.optimizer, optimizer, facts, trees
            )
            # Said where they are, or a partitioner gathers all that they are made of.
            params = on_table(place, "optimizer", params)
            params = on_table(place, "params", params)
        metrics |= {"gradient_norm": norm, "square_norms": norms}
        return TrainState(state.step + 1, params, moments), metrics

    return train_step


def token_loss(
    config: RunConfig, place: Placement, params: Any, batch: Metrics
) -> TokenLoss:
    """The loss of every token of a batch."""
    batch = models.sight(config.model).counted(batch)
    family = models.family_of(config.model)
    output = family.hidden(config.model, params, batch, place)
    head_DV = family.head(config.model, params)
    return place.cross_entropy(
        output.hidden_BTD, head_DV, batch["targets_BT"], name="head"
    )


def routed(auxes: Any) -> Metrics:
    """Losses of all layers with experts, and their mean load; nothing without any.

    Args:
      auxes: of each segment of the stack, `parallel.experts.routing.statistics`
        summed over its layers.
    """
    said = [aux for aux in auxes or () if aux]
    if not said:
        return {}
    total = dict(jax.tree.map(lambda *parts: sum(parts), *said))
    loss, layers = total.pop("loss"), total.pop("layers")
    return {"loss": loss, **{key: value / layers for key, value in total.items()}}


def _loss(
    config: RunConfig, place: Placement, params: Any, batch: Metrics, total: Array
):
    family = models.family_of(config.model)
    output = family.hidden(config.model, params, batch, place)
    head_DV = family.head(config.model, params)
    token = place.cross_entropy(
        output.hidden_BTD, head_DV, batch["targets_BT"], name="head"
    )
    nll = jnp.sum(token.nll_BT) / total
    z = jnp.sum(jnp.square(token.log_normalizer_BT)) / total
    loss = nll + config.z_loss * z
    metrics: dict[str, Any] = {"nll": nll, "z": z}
    auxes = list(output.aux or ())
    more = models.further(config.model, params, batch, place, output)
    if more is not None:
        then, targets_BT, weight = more
        token = place.cross_entropy(
            then.hidden_BTD, head_DV, targets_BT, name="further/head"
        )
        metrics["further"] = jnp.sum(token.nll_BT) / total
        loss = loss + weight * metrics["further"]
        auxes += then.aux
    experts = routed(auxes)
    if experts:  # of every microbatch alike, however many targets it has
        # A pipeline says their mean, unless its stages alternate.
        together = stages_of(place.layout) > 1 and not alternates(place.layout)
        parts = 1 if together else config.accumulate
        own = {key: value / parts for key, value in experts.items()}
        loss = loss + own["loss"]
        metrics["experts"] = own
    return loss, {"loss": loss, **metrics}


def _gradients(config: RunConfig, place: Placement, state: TrainState, batch: Metrics):
    """Gradients of the whole batch's mean loss, one microbatch at a time; metrics."""
    params = state.params
    total = jnp.maximum(1, jnp.sum(batch["targets_BT"] >= 0))
    compute = jax.value_and_grad(functools.partial(_loss, config, place), has_aux=True)

    if alternates(place.layout):
        parts_M = microbatches(config, batch, place)

        def loss(place: Placement, params: Any, part: Metrics):
            return _loss(config, place, params, part, total)

        return alternate.gradients(place, params, batch, parts_M, loss)
    if taken_whole(config, place):
        (_, metrics), gradients = compute(params, batch, total)
        return on_table(place, "grads", gradients), metrics

    chance = jax.random.fold_in(jax.random.key(1), state.step)

    def add(carry: Any, step: Any):
        number, part = step
        (_, metrics), gradients = compute(params, part, total)
        gradients = on_table(place, "grads", gradients)
        key = jax.random.fold_in(chance, number)
        gradients = optimizers.summed(carry[0], gradients, key)
        return (gradients, jax.tree.map(jnp.add, carry[1], metrics)), None

    parts = microbatches(config, batch, place)
    first = jax.tree.map(lambda array_MBT: array_MBT[0], parts)
    (_, metrics), _ = jax.eval_shape(compute, params, first, total)
    zeros = (
        on_table(place, "grads", jax.tree.map(jnp.zeros_like, params)),
        jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics),
    )
    steps = (jnp.arange(config.accumulate), parts)
    (gradients, metrics), _ = jax.lax.scan(add, zeros, steps)
    return gradients, metrics


def taken_whole(config: RunConfig, place: Placement) -> bool:
    """Whether the model is given a whole batch: the stages of a pipeline take its
    microbatches in turn themselves."""
    return config.accumulate == 1 or stages_of(place.layout) > 1


def microbatches(
    config: RunConfig, batch: Metrics, place: Placement
) -> dict[str, Array]:
    """The batch as M microbatches of every M-th sequence.

    Taking every M-th keeps each device's sequences on it; taking runs of B/M would
    move the batch dim's sharding onto M.
    """

    def one(array_BT: Array) -> Array:
        array_MBT = rearrange(array_BT, "(b m) t -> m b t", m=config.accumulate)
        return place.constrain(array_MBT, "acts", "MBT")

    return {key: one(value) for key, value in batch.items()}


def on_table(place: Placement, kind: str, tree: Any) -> Any:
    """Every parameter-shaped array of a tree, resting where a table says."""

    def one(path: Any, leaf: Any) -> Any:
        name = leaf_name(path)
        return place.constrain(leaf, kind, dims.letters(name), name)

    return jax.tree.map_with_path(one, tree)


def leaf_name(path: Any) -> str:
    """The last key of a tree path: a parameter's name."""
    return str(getattr(path[-1], "key", "")) if path else ""
