"""Our own runs as points: sizes from the model, shares from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from scaling_lab import dims, models
from scaling_lab.config import RunConfig
from scaling_lab.cost import activations, kernels, traffic
from scaling_lab.cost.flops import recomputed
from scaling_lab.cost.ledger import record
from scaling_lab.cost.machines import host_rate, machine_columns, peak_of
from scaling_lab.cost.points import PRECISIONS, REMATS, SCHEDULES, STACKS, Points
from scaling_lab.hardware import Chip, chip
from scaling_lab.layouts import Layout, routed, schedule_of, virtual_of
from scaling_lab.models.shape import sizes
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.optimizers.moments import BYTES
from scaling_lab.parallel import experts, low_precision, policies

#: Bytes of optimizer state of one parameter, with moments in float32.
STATE_BYTES = {"adamw": 8.0, "lion": 4.0, "muon": 4.0, "adafactor": 0.1}


def state_bytes(optimizer: OptimizerConfig) -> float:
    """Bytes of optimizer state of one parameter."""
    return STATE_BYTES[optimizer.name] * BYTES[optimizer.moments] / 4


def points_of(configs: Sequence[RunConfig], local: Chip | None = None) -> Points:
    """Points of some configs, in order.

    Args:
      local: the chip that the target ``local`` means; default the CPU.

    Raises:
      ValueError: no config at all.
    """
    return Points.concat([_point(config, local) for config in configs])


def _point(config: RunConfig, local: Chip | None) -> Points:
    point = Points(**_columns(config, local))
    try:
        kept = activations.kept_bytes(point, config.remat)
    except ValueError:  # a policy that says what is dropped
        return point
    away = (
        0.0
        if config.remat == "none"
        else activations.offloaded_share(point, config.remat)
    )
    return point.replace(kept=kept / activations.whole_bytes(point), offload=away)


def _kernel(config: RunConfig, found: Chip) -> dict[str, float]:
    """How attention is done on one device; a CPU's writes its scores."""
    if found.name == "cpu":
        return {"flash": 0.0}
    heads = [entry.sizes["H"] for entry in record(config) if entry.verb == "attend"]
    rows = kernels.Rows(
        widest=max(heads),
        narrow=config.arithmetic in ("bfloat16", "float16"),
        sight=models.sight(config.model),
        length=config.length,
        context=config.layout.mesh.get("context", 1),
        parts=_attends(config) != "whole",
    )
    flash, slower = kernels.attention(found, rows)
    return {"flash": float(flash), "attend_times": float(slower)}


def _attends(config: RunConfig) -> str:
    """How a divided sequence is attended to; ``whole`` where rows come together."""
    if config.layout.mesh.get("context", 1) == 1:
        return "whole"
    kind = config.layout.mechanism("attend", "gather")
    return "whole" if kind == "ulysses" else kind


def _zero(layout: Layout) -> int:
    """Which of ZeRO's stages the tables are."""
    rests, reduced, state = (
        layout.spec(kind, "DF") for kind in ("params", "grads", "optimizer")
    )
    if state == rests:
        divided = layout.mesh.get("fsdp", 1) * layout.mesh.get("expert", 1)
        return 3 if divided > 1 else 0
    return 1 if reduced == rests else 2


def _columns(config: RunConfig, local: Chip | None) -> dict[str, Any]:
    layout = config.layout
    found = config.parsed_target().chip or local or chip("cpu")
    mesh = {axis: layout.mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor")}
    expert = layout.mesh.get("expert", 1)
    # To all but experts their axis is one more over which weights rest divided.
    mesh["fsdp"] *= expert
    replicas = mesh["data"] * mesh["fsdp"]
    kinds = {"none": "none", "full": "full"}
    kind = policies.parse(config.remat).kind
    devices = layout.devices
    kernel = _kernel(config, found)
    again = _again(config, kernel["flash"] > 0)
    peak, wide = peak_of(found, config.precision)
    resting = float(jnp.dtype(config.parameters).itemsize)
    return {
        **_model(config),
        **_seen(config),
        **machine_columns(found, devices / found.devices_per_chip),
        **mesh,
        "seq_len": config.length,
        "global_batch_tokens": config.tokens_per_step,
        "microbatch_seqs": config.batch / config.accumulate / replicas,
        "zero_stage": _zero(layout),
        "sequence_parallel": float("T" in dict(layout.acts.get("BTD") or {})),
        "stage": layout.mesh.get("stage", 1),
        "virtual_stages": virtual_of(layout),
        "context": layout.mesh.get("context", 1),
        "ulysses": float(layout.mechanism("attend", "gather") == "ulysses"),
        "ring_of_keys": float(_attends(config) == "ring"),
        **_experts(config, expert),
        "schedule": SCHEDULES.index(schedule_of(layout)),
        "lockstep": 1.0,
        "overlap": 0,
        "precision": PRECISIONS.index(config.precision),
        "flops_per_second": peak / found.devices_per_chip,
        "bf16_flops_per_second": wide / found.devices_per_chip,
        "stack": STACKS.index("xla"),
        "param_bytes": resting,
        "grad_bytes": resting,
        **_state(config),
        **_narrow(config),
        "remat": REMATS.index(kinds.get(kind, "selective")),
        "recompute": again,
        "kept": 1.0 if kind == "none" else 1.0 - 0.9 * again,
        "offload": 0.0,
        **kernel,
        "gathers": 2.0 - (1 / layout.once_in if layout.once_in else 0.0),
        "host_bytes_per_second": host_rate(found),
    }


def _experts(config: RunConfig, ways: int) -> dict[str, float]:
    """How rows and experts meet over an axis of so many ways.

    Where every device uses every expert their axis is one more over which weights rest.
    """
    bound = routed.mechanism(config.layout)
    if not hasattr(config.model, "routing") or bound in experts.WHOLE:
        return {"expert": 1}
    found = {"expert": ways, "ring_of_experts": float(bound == "ring_of_experts")}
    if bound == "capacity":
        found["places"] = config.model.routing.capacity
    return found


def _narrow(config: RunConfig) -> dict[str, float]:
    """Which products are in 8 bits, where some are; what gradients are summed in.

    What is no product of two arrays of one device (experts' weights, a looked-up table)
    is not summed in what the run says, and counts as where it says nothing.
    """
    recipe = low_precision.RECIPES.get(config.precision)
    low = recipe is None or recipe.weight is not None
    found = {"low_experts": 0.0, "low_gradients": float(low)}
    if config.reduce is None:
        return found
    rests = jnp.dtype(config.parameters).itemsize
    said, total = 0, 0
    for path, leaf in dims.leaves(config.abstract_params).items():
        total += leaf.size
        if traffic.contracted(config, path.rpartition("/")[2]):
            said += leaf.size
    share = said / total
    wide = jnp.dtype(config.reduce).itemsize * share + rests * (1 - share)
    return {**found, "reduced_bytes": wide}


def _state(config: RunConfig) -> dict[str, float]:
    """Bytes of optimizer state of one parameter: on the device, and on its host.

    Of state that is away one layer's is on the device, and the next on its way.
    """
    size = state_bytes(config.optimizer)
    if config.layout.mechanism("optimizer", "device") != "host":
        return {"optimizer_bytes": size}
    near = min(1.0, 2 / config.model.L)
    return {"optimizer_bytes": size * near, "away_bytes": size}


def _model(config: RunConfig) -> dict[str, Any]:
    found = dict(sizes(config.model))
    latent = found.pop("latent")
    return {
        **found,
        "gated": float(found["gated"]),
        "tied": float(found["tied"]),
        "ends_in_norm": float(found["ends_in_norm"]),
        "attention_params": np.nan if latent is None else latent,
    }


def _seen(config: RunConfig) -> dict[str, Any]:
    keys = keys_seen(config)
    return {} if keys is None else {"window": keys}


def keys_seen(config: RunConfig) -> float | None:
    """Keys that an average query of a limited layer sees, pair by pair from the ledger.

    ``None`` where no layer is limited.
    """
    share = sizes(config.model)["window_share"]
    said = [entry for entry in record(config) if entry.verb == "attend"]
    if not share or not said:
        return None
    layers = sum(entry.times for entry in said if entry.name.endswith("/attend"))
    seen = sum(entry.flops / (4 * entry.elements("BTNH")) for entry in said)
    rest = (1 - share) * (config.length + 1) / 2
    return max(1.0, (seen / layers - rest) / share)


def _again(config: RunConfig, flash: bool) -> float:
    """The share of the blocks' forward FLOPs that the backward pass does again.

    Args:
      flash: scores are never written, so that the gradient's kernel makes them anew
        under any policy; what that takes is priced with the kernel.
    """
    entries = [e for e in record(config) if e.verb not in ("cross_entropy", "take")]
    total = sum(entry.flops for entry in entries)
    again = 0.0
    for entry in entries:
        share = recomputed(config.remat, entry)
        kept = entry.verb == "attend" and share < 1
        again += 0.0 if flash and kept else entry.flops * share
    return again / total if total else 0.0
