"""A run made ready: where things live, how state begins, the jitted functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, SingleDeviceSharding

from scaling_lab import dims, layouts, models, optimizers
from scaling_lab.config import RunConfig, mup, together
from scaling_lab.layouts import ExplicitPlacement, Placement
from scaling_lab.parallel import (
    attention,
    context,
    cudnn,
    equations,
    experts,
    low_precision,
    mosaic,
    splash,
    stacked,
    triton,
)
from scaling_lab.train import away
from scaling_lab.train.step import (
    Metrics,
    TrainState,
    leaf_name,
    make_train_step,
    microbatches,
    taken_whole,
    token_loss,
)

Array = jax.Array

#: Deeper stacks are scanned even where unrolling is faster: compile time grows.
UNROLL_UP_TO = 16

#: The arrays of a batch, each (B, T) int32.
BATCH = ("tokens_BT", "targets_BT", "positions_BT", "segments_BT")


class Program(NamedTuple):
    """A run made ready: where things live, how state begins, and the jitted step."""

    config: RunConfig
    place: Placement
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Metrics], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Metrics], Metrics]
    shardings: TrainState

    def put(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """A host batch on the devices, each with its own sequences and positions.

        Where a sequence is divided, its tokens stand in zigzag order from here on.
        """
        sharding = self.place.sharding("acts", "BT")
        shards = self.place.layout.over(self.place.layout.spec("acts", "BT")[1:])
        if shards > 1:
            order_T = context.zigzag(self.config.length, shards)
            batch = {key: value[:, order_T] for key, value in batch.items()}
        return {key: jax.device_put(value, sharding) for key, value in batch.items()}

    def abstract_arguments(self) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
        """What the step takes, as shapes that know where they live; nothing is made."""
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            jax.eval_shape(self.init),
            self.shardings,
        )
        shape = (self.config.batch, self.config.length)
        leaf = jax.ShapeDtypeStruct(
            shape, jnp.int32, sharding=_rests(self.place, "acts", "BT")
        )
        return state, dict.fromkeys(BATCH, leaf)


def make_placement(config: RunConfig, devices: Any = None) -> Placement:
    """The config's layout bound to its mesh.

    Raises:
      IllegalLayout: more devices asked than there are.
    """
    explicit = config.axis_type == "explicit"
    kind = AxisType.Explicit if explicit else AxisType.Auto
    layout = config.placed_layout
    one = layout.devices == 1
    cls = ExplicitPlacement if explicit and not one else Placement
    # Devices that are handed in may belong to another machine than this process's.
    platform = (jax.devices() if devices is None else devices)[0].platform
    on_cpu = platform == "cpu"
    short = config.model.L <= UNROLL_UP_TO
    unroll = config.stack == "unroll" or (
        config.stack == "auto"
        and on_cpu
        and one
        and short
        and config.remat == "none"  # XLA:CPU undoes rematerialisation outside loops
    )
    return cls(
        **_habits(platform),
        **_scales(config),
        layout=layout,
        mesh=None
        if one and devices is None
        else layouts.make_mesh(layout, devices, kind),
        compute=jnp.dtype(config.arithmetic),
        low=_low(config),
        reduce=config.reduce,
        remat=config.remat,
        unroll=unroll,
        together=together(config.stack),
        microbatches=config.accumulate,
        loss_chunks=config.loss_chunks,
    )


def _low(config: RunConfig) -> low_precision.Coded | None:
    recipe = low_precision.RECIPES.get(config.precision)
    return None if recipe is None else low_precision.Coded(recipe)


def _scales(config: RunConfig) -> dict[str, Any]:
    """muP's multipliers, under their names of a placement."""
    if config.mup is None:
        return {}
    found = mup.multipliers(config.model, config.mup)
    return {f"{verb}_scale": factor for verb, factor in found.items()}


def _habits(platform: str) -> dict[str, Any]:
    """The mechanisms of one device that suit a platform."""
    if platform == "tpu":
        return {
            "attend_with": splash.attend,
            "attend_kernel": mosaic.KERNEL,
            "group_with": experts.grouped,
            # XLA gathers weights meanwhile; on a GPU it gains nothing, and may lose.
            "barred": False,
        }
    if platform in ("gpu", "cuda"):
        return {
            "attend_with": cudnn.attend,
            "attend_stacked": stacked.as_sequences(cudnn.attend, cudnn.RESIDUALS),
            "attend_chosen": triton.attend_chosen,
            "attend_kernel": triton.KERNEL,
            "attend_residual": ",".join(cudnn.RESIDUALS),
            "group_with": experts.tiled,
        }
    if platform == "cpu":  # what suits its caches and Eigen's products
        return {
            "attend_with": attention.blockwise,
            "contract_with": equations.contract_narrow,
            "loss_elements": 2**22,
        }
    return {}


def make_program(config: RunConfig, devices: Any = None) -> Program:
    """Placement, initial state and jitted functions of a validated config."""
    place = make_placement(config, devices)
    rates = None if config.mup is None else mup.rates(config.model, config.mup)
    optimizer = optimizers.make(config.optimizer, config.steps, rates)
    shardings = state_shardings(config, place, optimizer)
    init = functools.partial(_init, config, optimizer)
    return Program(
        config=config,
        place=place,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            make_train_step(config, place, optimizer),
            donate_argnums=0,
            out_shardings=(shardings, None),
        ),
        evaluate=jax.jit(functools.partial(_evaluate, config, place)),
        shardings=shardings,
    )


def _init(config: RunConfig, optimizer: optax.GradientTransformation) -> TrainState:
    params = config.initial(jax.random.key(config.seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shardings(
    config: RunConfig, place: Placement, optimizer: optax.GradientTransformation
) -> Any:
    """Where every array of the state rests, by the `params` and `optimizer` tables."""
    abstract = jax.eval_shape(functools.partial(_init, config, optimizer))
    letters = optimizers.state_dims(abstract.optimizer, abstract.params)
    return TrainState(
        step=_rests(place, "params", ""),
        params=shardings_of(place, abstract.params),
        optimizer=jax.tree.map_with_path(
            lambda path, own, leaf: _state_rests(
                place, own, leaf_name(path), leaf.shape if own else ()
            ),
            letters,
            abstract.optimizer,
        ),
    )


def _state_rests(
    place: Placement, letters: str, name: str, shape: Sequence[int]
) -> Any:
    """Where an array of optimizer state rests, the host's memory included."""
    found = _rests(place, "optimizer", letters, name, shape)
    if not (letters and away.is_away(place.layout)):
        return found
    away_from = found.with_memory_kind(away.HOST)
    if away_from.memory_kind != away.HOST:
        raise layouts.IllegalLayout(
            "offload_optimizer: these devices tell of no memory of their host, as GPUs "
            "that are not here do not; compile it for a TPU or run it on the GPUs, or "
            "leave it out and ask for --moments int8"
        )
    return away_from


def shardings_of(place: Placement, params: Any) -> Any:
    """Where every parameter rests, as a tree like `params`."""

    def of(path: Any, leaf: Any) -> Any:
        name = leaf_name(path)
        return _rests(place, "params", dims.check(name, leaf.shape), name)

    return jax.tree.map_with_path(of, params)


def _rests(
    place: Placement,
    kind: str,
    letters: str,
    name: str = "",
    shape: Sequence[int] = (),
) -> Any:
    """A table's sharding; without a mesh the one device there is."""
    found = place.sharding(kind, letters, name, shape)
    return found or SingleDeviceSharding(jax.devices()[0])


def _evaluate(config: RunConfig, place: Placement, params: Any, batch: Metrics):
    """The loss of a batch, by microbatches as a step takes them: what fits there fits
    here, and experts choose among as many tokens."""
    batch = models.sight(config.model).counted(batch)

    def nats(part: Metrics) -> Array:
        return jnp.sum(token_loss(config, place, params, part).nll_BT)

    if taken_whole(config, place):
        total = nats(batch)
    else:
        parts = microbatches(config, batch, place)
        total = jnp.sum(jax.lax.map(nats, parts))
    return {"nats": total, "tokens": jnp.sum(batch["targets_BT"] >= 0)}
