"""Finding the first tensor that is no number, verb by verb."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling_lab import dims
from scaling_lab.layouts import Placement
from scaling_lab.train.program import Program
from scaling_lab.train.step import Metrics, token_loss


class _Found(Exception):
    """Carries the name of a verb out of a forward pass."""


class _Watch(Placement):
    """A placement that looks at what every verb returns; for use outside jit."""

    def einsum(self, equation: str, *operands: Any, name: str, bias: Any = None):
        return _look(super().einsum(equation, *operands, name=name, bias=bias), name)

    def take(self, table: Any, indices_BT: Any, *, name: str, dims: str = "VD"):
        return _look(super().take(table, indices_BT, name=name, dims=dims), name)

    def attend(self, q_BTNH, k_BSKH, v_BSKH, mask, *, name: str):
        return _look(super().attend(q_BTNH, k_BSKH, v_BSKH, mask, name=name), name)

    def experts(self, *arrays: Any, name: str, **rest: Any):
        result, aux = super().experts(*arrays, name=name, **rest)
        return _look(result, name), aux

    def cross_entropy(self, hidden_BTD, head_DV, targets_BT, *, name: str):
        loss = super().cross_entropy(hidden_BTD, head_DV, targets_BT, name=name)
        _look(loss.nll_BT, name)
        return loss


def describe_fault(
    program: Program, number: int, params: Any, batch: Metrics, metrics: Metrics
) -> str:
    """What went wrong in a step, by the name of its first tensor that is no number.

    Looked for in the parameters, then in the forward pass, verb by verb, then among
    the gradients.
    """
    where = (
        _bad_parameter(params)
        or _bad_verb(program, params, batch)
        or _bad_gradient(metrics)
        or "the loss itself"
    )
    return (
        f"step {number}: loss {float(metrics['loss'])}, gradient norm "
        f"{float(metrics['gradient_norm'])}; first bad tensor: {where}. The step "
        "changed nothing. Try a lower learning rate, a longer warm-up, or "
        "precision float32"
    )


def _bad_parameter(params: Any) -> str | None:
    for path, leaf in dims.leaves(params).items():
        if not bool(jnp.isfinite(leaf).all()):
            return f"parameter {path}"
    return None


def _bad_verb(program: Program, params: Any, batch: Metrics) -> str | None:
    # One device, layers written out and nothing rematerialised, so that every verb
    # returns an array one can look at.
    watch = _Watch(dataclasses.replace(program.config.layout, mesh={}), unroll=True)
    place = program.place
    watch = dataclasses.replace(watch, compute=place.compute, low=place.low)
    try:
        host = jax.device_get((params, dict(batch)))
        token_loss(program.config, watch, *jax.tree.map(np.asarray, host))
    except _Found as found:
        return f"output of {found}"
    return None


def _bad_gradient(metrics: Metrics) -> str | None:
    for path, square in metrics["square_norms"].items():
        if not np.isfinite(square):
            return f"gradient of {path}"
    return None


def _look(array: jax.Array, name: str) -> jax.Array:
    if not bool(jnp.isfinite(array).all()):
        raise _Found(name)
    return array
