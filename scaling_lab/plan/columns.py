"""Models and machines as the columns of `cost.points.Points`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scaling_lab import models
from scaling_lab.config import RunConfig
from scaling_lab.cost.machines import host_rate, machine_columns, peak_of
from scaling_lab.cost.points import PRECISIONS, REMATS, SCHEDULES, STACKS, Points
from scaling_lab.cost.runs import STATE_BYTES, keys_seen
from scaling_lab.hardware import Target, parse_target
from scaling_lab.layouts import parse
from scaling_lab.names import one_of
from scaling_lab.plan.huggingface import Shape

Columns = dict[str, Any]

#: What a run is where nothing is said of it: ours, on one device.
_RUN: Columns = {
    "microbatch_seqs": 1,
    "data": 1,
    "fsdp": 1,
    "zero_stage": 0,
    "tensor": 1,
    "sequence_parallel": 0,
    "stage": 1,
    "virtual_stages": 1,
    "context": 1,
    "expert": 1,
    "schedule": SCHEDULES.index("1f1b"),
    "overlap": 0,
    "stack": STACKS.index("xla"),
    "lockstep": 1.0,
    "param_bytes": 4.0,
    "grad_bytes": 4.0,
    "optimizer_bytes": STATE_BYTES["adamw"],
    "flash": 1,
    "remat": REMATS.index("none"),
    "recompute": 0.0,
    "kept": 1.0,
    "offload": 0.0,
}


def points(shape: Shape, machine_: Columns, **run: Any) -> Points:
    """Points of one model on one machine.

    Args:
      machine_: what `machine` says. run: further columns; a scalar is a whole column.
    """
    found = {**_RUN, **model(shape), **machine_, **run}
    found["window"] = _seen(shape, found["seq_len"])
    return Points(**found)


def _seen(shape: Shape, length: Any) -> Any:
    """Keys that an average query of a local layer sees: the first see fewer."""
    sight = None if shape.config is None else models.sight(shape.config)
    if sight is not None and not sight.windows_alone:
        alone = parse("data=1")
        return keys_seen(RunConfig(shape.config, alone, batch=1, length=int(length)))
    near = np.minimum(shape.window, length)
    return near - near * (near - 1) / (2 * np.maximum(length, 1))


def model(shape: Shape) -> Columns:
    """The columns that say what the model is."""
    return {
        "layers": shape.layers,
        "d_model": shape.d_model,
        "n_heads": shape.n_heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "attention_params": np.nan if shape.latent is None else shape.latent,
        "d_ff": shape.d_ff,
        "gated": int(shape.gated),
        "vocab": shape.vocab,
        "tied": int(shape.tied),
        "n_experts": shape.n_experts,
        "top_k": shape.top_k,
        "expert_d_ff": shape.expert_d_ff,
        "shared_d_ff": shape.shared_d_ff,
        "dense_layers": shape.dense_layers,
        "window": shape.window,
        "window_share": shape.window_share,
        "ends_in_norm": int(shape.ends_in_norm),
        "params": shape.params,
        "active_params": shape.active_params,
    }


def machine(
    target: Target | str,
    precision: str = "bfloat16",
    node_gbps: float | None = None,
) -> Columns:
    """The columns that say what the machine is; what a chip's file lacks is NaN.

    Args:
      precision: of the matrix products, a name of `cost.points.PRECISIONS`.
      node_gbps: network of one node (of a TPU: one host), gigabits per second one way,
        instead of the chip's own.

    Raises:
      ValueError: ``local``, which is no machine on paper; no such precision.
    """
    target = parse_target(target) if isinstance(target, str) else target
    chip, chips = target.chip, target.chips
    if chip is None or chips is None:
        raise ValueError(
            "target 'local' says nothing on paper; name a machine, as in "
            "'tpu-v5p:4x4x4' or 'h100:8x8'"
        )
    one_of("precision", precision, PRECISIONS)
    shown = chip.devices_per_chip
    joined = target.topology if chip.torus_dims else target.topology[-1:]
    peak, wide = peak_of(chip, precision)
    found = machine_columns(chip, chips) | {
        "precision": PRECISIONS.index(precision),
        "flops_per_second": peak / shown,
        "bf16_flops_per_second": wide / shown,
        "scale_up": math.prod(joined) * shown,
        "host_bytes_per_second": host_rate(chip),
    }
    if node_gbps is not None:
        in_node = chip.chips_per_host(target.topology)
        found["network_bytes_per_second"] = node_gbps * 1e9 / 8 / in_node / shown
    return found
