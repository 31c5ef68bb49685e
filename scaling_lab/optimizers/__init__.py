"""Optimizers: optax chains with schedules and parameter groups, read off the names.

Every optimizer works layer by layer: a stacked parameter's leading L is never mixed
with its other dims, so stacking changes no update. Factored state has its own dims,
declared by `state_dims`, so it can be placed by a table like everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from scaling_lab import dims
from scaling_lab.names import one_of
from scaling_lab.optimizers.moments import in_blocks, narrowed
from scaling_lab.optimizers.rounding import applied, resting, summed, widened
from scaling_lab.optimizers.stacks import (
    along,
    balancing,
    is_balance,
    is_matrix,
    per_layer,
    stacked,
    state_dims,
    weights,
)

__all__ = [
    "OptimizerConfig",
    "is_balance",
    "alike",
    "along",
    "applied",
    "cooldown_start",
    "in_blocks",
    "is_matrix",
    "make",
    "per_layer",
    "resting",
    "schedule",
    "square_norms",
    "state_dims",
    "summed",
    "weights",
]

Params = Mapping[str, Any]

#: Adafactor keeps full second moments for matrices smaller than this.
FACTOR_FROM = 128


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its schedule.

    Attributes:
      name: adamw, adafactor, lion or muon (hidden matrices; adamw for the rest).
      learning_rate: the schedule's peak.
      schedule: constant, cosine, linear, or wsd (warmup-stable-decay).
      warmup: steps of linear warm-up from zero.
      decay: for wsd, the fraction of all steps in which it decays.
      final: the last learning rate as a fraction of the peak.
      weight_decay: on matrices alone (biases and norms are spared).
      clip: the global gradient norm is cut to this; ``None`` never cuts.
      moments: how they are kept between steps: float32, bfloat16, or int8, which is 8
        bits with a scale for each block of 64 to 256 (see `moments`). Adafactor's
        are factored.
      balance: how far a step moves a router's bias against its expert's excess load
        (DeepSeek-V3, section 4.2).
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 10
    decay: float = 0.2
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    moments: str = "float32"
    balance: float = 1e-3


def make(
    config: OptimizerConfig, steps: int, rates: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """The optimizer of a run of so many steps; clipping is the train step's.

    Args:
      rates: of every parameter's path what its learning rate is multiplied by, decay
        left alone; adamw and lion know how.

    Raises:
      ValueError: unknown optimizer or schedule, with the nearest names.
    """
    rate = schedule(config, steps)
    chosen = _named(_OPTIMIZERS, "optimizer", config.name)(config, rate)
    if rates is not None:
        chosen = _rated(config, rate, rates)
    if config.name == "adafactor" and config.moments != "float32":
        raise ValueError(
            f"moments={config.moments!r}: adafactor's are sums over rows and columns, "
            "too few to make narrow; leave them float32, or use adamw, lion or muon"
        )
    return widened(balancing(narrowed(chosen, config.moments), config.balance))


def alike(config: OptimizerConfig) -> bool:
    """Whether an update of 8-bit moments treats every number alike; see `in_blocks`."""
    return config.moments == "int8" and config.name in ("adamw", "lion")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named shape."""
    shape = _named(_SCHEDULES, "schedule", config.schedule)
    warmup = min(config.warmup, steps)
    after = max(1, steps - warmup)
    peak, low = config.learning_rate, config.final * config.learning_rate
    rise = optax.linear_schedule(0.0, peak, max(1, warmup))
    if warmup == 0:
        return shape(config, peak, low, after)

    def rate(step: Any) -> Any:
        # Counted from one, so that the first step of a warm-up moves the weights.
        return optax.join_schedules([rise, shape(config, peak, low, after)], [warmup])(
            step + 1
        )

    return rate


def cooldown_start(config: OptimizerConfig, steps: int) -> int:
    """Steps of a run before ``wsd`` decays: until then its length changes nothing."""
    return steps - _tail(config, max(1, steps - min(config.warmup, steps)))


def _tail(config: OptimizerConfig, after: int) -> int:
    """Steps of ``wsd`` that decay, of those after the warm-up."""
    return max(1, round(config.decay * after))


def _decayed(params: Params) -> Any:
    def of(path: Any, _: Any) -> bool:
        return is_matrix(str(path[-1].key))

    return jax.tree.map_with_path(of, params)


def _adamw(c: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate, c.b1, c.b2, c.epsilon, weight_decay=c.weight_decay, mask=_decayed
    )


def _lion(c: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(rate, c.b1, c.b2, weight_decay=c.weight_decay, mask=_decayed)


def _rated(
    c: OptimizerConfig, rate: optax.Schedule, rates: Mapping[str, float]
) -> optax.GradientTransformation:
    """AdamW or Lion whose step, but not its decay, has a rate for every parameter."""

    def each(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map_with_path(
            lambda path, leaf: leaf * rates["/".join(dims.keys(path))], updates
        )

    steps = {
        "adamw": optax.scale_by_adam(c.b1, c.b2, c.epsilon),
        "lion": optax.scale_by_lion(c.b1, c.b2),
    }
    return optax.chain(
        _named(steps, "optimizer of mup", c.name),
        optax.stateless(each),
        optax.add_decayed_weights(c.weight_decay, _decayed),
        optax.scale_by_learning_rate(rate),
    )


def _adafactor(c: OptimizerConfig, rate: optax.Schedule):
    # optax decays by the plain rate here, not by rate × decay: give it the product.
    def decay(step: Any) -> Any:
        return c.weight_decay * rate(step)

    return per_layer(
        optax.adafactor(
            rate,
            min_dim_size_to_factor=FACTOR_FROM,
            weight_decay_rate=decay if c.weight_decay else None,
            weight_decay_mask=_decayed,
        )
    )


def _muon(c: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    hidden = muon(
        rate,
        beta=0.95,
        eps=c.epsilon,
        weight_decay=c.weight_decay,
        muon_weight_dimension_numbers=cast(Any, _hidden_matrices),
        # Updates as large as Adam's, so that one learning rate serves both groups
        # (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
        consistent_rms=0.2,
    )
    return optax.partition({"muon": hidden, "adamw": _adamw(c, rate)}, _groups)


def _groups(params: Params) -> Any:
    def of(path: Any, _: Any) -> str:
        return "muon" if _is_hidden(str(path[-1].key)) else "adamw"

    return jax.tree.map_with_path(of, params)


def _is_hidden(name: str) -> bool:
    return dims.letters(name).startswith("L") and is_matrix(name)


def _hidden_matrices(params: Params) -> Any:
    """The dims each hidden matrix reads and writes; layers are a batch of matrices."""

    def of(path: Any, _: Any) -> MuonDimensionNumbers | None:
        name = str(path[-1].key)
        letters = dims.letters(name)
        if not _is_hidden(name):
            return None
        inner = tuple(range(stacked(name), len(letters)))
        if letters[inner[0]] == "D":
            return MuonDimensionNumbers(inner[:1], inner[1:])
        return MuonDimensionNumbers(inner[:-1], inner[-1:])

    return jax.tree.map_with_path(of, params)


def _constant(c, peak, low, steps):
    return optax.constant_schedule(peak)


def _cosine(c, peak, low, steps):
    return optax.cosine_decay_schedule(peak, steps, alpha=c.final)


def _linear(c, peak, low, steps):
    return optax.linear_schedule(peak, low, steps)


def _wsd(c, peak, low, steps):
    """Warmup-stable-decay (Hu et al. 2024, MiniCPM): flat, then linear at the end."""
    tail = _tail(c, steps)
    return optax.linear_schedule(peak, low, tail, transition_begin=steps - tail)


_OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
_SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
}


def _named(table: Mapping[str, Any], what: str, name: str) -> Any:
    one_of(what, name, table)
    return table[name]


def square_norms(gradients: Params) -> dict[str, jax.Array]:
    """The squared float32 norm of every gradient, by parameter path."""
    return {
        path: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        for path, leaf in dims.leaves(gradients).items()
    }
