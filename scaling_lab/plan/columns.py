"""Models, machines and runs as the columns of `cost.points.Points`."""

from __future__ import annotations

from typing import Any

import numpy as np

from scaling_lab.config import RunConfig
from scaling_lab.cost import activations
from scaling_lab.cost.points import PRECISIONS, REMATS, SCHEDULES, STACKS, Points
from scaling_lab.hardware import Target, parse_target
from scaling_lab.plan import shape as shapes
from scaling_lab.plan.huggingface import Shape

Columns = dict[str, Any]

#: Optimizer state of one parameter in float32 (`optimizers.STATE`): moments, no master
#: copy, since parameters rest in float32.
OPTIMIZER_BYTES = {"adamw": 8.0, "lion": 4.0, "muon": 4.0, "adafactor": 0.0}
#: Hosts of four TPUs; a GPU's node is the first size of its target.
CHIPS_OF_A_TPU_HOST = 4

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
    "param_bytes": 4.0,
    "grad_bytes": 4.0,
    "optimizer_bytes": OPTIMIZER_BYTES["adamw"],
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
    return Points(**{**_RUN, **model(shape), **machine_, **run})


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
      node_gbps: network of one node (a TPU host), gigabits per second one way, instead
        of the chip's own.

    Raises:
      ValueError: ``local``, which is no machine on paper; no such precision.
    """
    target = parse_target(target) if isinstance(target, str) else target
    chip = target.chip
    if chip is None:
        raise ValueError(
            "target 'local' says nothing on paper; name a machine, as in "
            "'tpu-v5p:4x4x4' or 'h100:8x8'"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; there are {', '.join(PRECISIONS)}")
    shown = chip.devices_per_chip
    wide = chip.flops_per_second.get("bfloat16")
    switched = not chip.torus_dims
    joined = target.topology[-1] if switched else int(np.prod(target.topology))
    network = chip.network_bytes_per_second
    if node_gbps is not None:
        in_node = joined if switched else CHIPS_OF_A_TPU_HOST
        network = node_gbps * 1e9 / 8 / in_node
    return {
        "devices": target.devices,
        "devices_per_chip": shown,
        "chip": chip.name,
        "precision": PRECISIONS.index(precision),
        "flops_per_second": _each(_peak(chip, precision), shown),
        "bf16_flops_per_second": _each(wide, shown),
        "hbm_bytes": _each(chip.hbm_bytes, shown),
        "hbm_bytes_per_second": _each(chip.hbm_bytes_per_second, shown),
        "link_bytes_per_second": _each(chip.link_bytes_per_second, shown),
        "scale_up": joined * shown,
        "torus_dims": chip.torus_dims,
        "network_bytes_per_second": _each(network, shown),
    }


def of_run(config: RunConfig) -> Points:
    """One of our runs as one point; a machine without numbers (``local``) leaves NaN.

    Raises:
      ValueError: axes that divide nothing that is trained here yet.
    """
    layout = config.layout
    mesh = {axis: layout.mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor")}
    other = {a: n for a, n in layout.mesh.items() if a not in mesh and n > 1}
    if other:
        raise ValueError(f"layout {layout.name!r}: {other} divide nothing yet")
    shape = shapes.of_config(config.model)
    target = config.parsed_target()
    named = config.precision if target.chip is not None else "bfloat16"
    where = machine(target if target.chip else "cpu:1", named)
    replicas = mesh["data"] * mesh["fsdp"]
    run = points(
        shape,
        where,
        **mesh,
        precision=PRECISIONS.index(config.precision),
        seq_len=config.length,
        global_batch_tokens=config.tokens_per_step,
        microbatch_seqs=config.batch / config.accumulate / replicas,
        zero_stage=_zero(layout),
        sequence_parallel=int("T" in dict(layout.acts.get("BTD") or {})),
        optimizer_bytes=OPTIMIZER_BYTES[config.optimizer.name],
        devices=layout.devices,
    )
    return with_policy(run, config.remat)


def with_policy(run: Points, policy: str) -> Points:
    """Points under one remat policy of ours: what is kept and what is done again."""
    kind = policy.partition(":")[0]
    kept = activations.kept_bytes(run, policy) / activations.whole_bytes(run)
    code = {"none": "none", "full": "full"}.get(kind, "selective")
    return run.replace(
        remat=REMATS.index(code),
        kept=kept,
        recompute=activations.recomputed_share(run, policy),
    )


def _zero(layout: Any) -> int:
    """Which of ZeRO's stages the tables are."""
    spec = layout.spec("grads", "DF") != layout.spec("params", "DF")
    state = layout.spec("optimizer", "DF") != layout.spec("params", "DF")
    if state:
        return 2 if spec else 1
    return 3 if layout.mesh.get("fsdp", 1) > 1 else 0


def _peak(chip: Any, precision: str) -> float | None:
    known = chip.flops_per_second
    if precision in known:
        return known[precision]
    if precision in ("mxfp8", "nvfp4"):
        return known.get({"mxfp8": "float8", "nvfp4": "float4"}[precision])
    # A GPU multiplies float32 at a fraction that no file claims; 16 bits are alike.
    return known.get("bfloat16")


def _each(value: float | None, devices: int) -> float:
    return np.nan if value is None else value / devices
