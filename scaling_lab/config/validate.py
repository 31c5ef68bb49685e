"""Whether a run can be: every check in one place, before anything is traced."""

from __future__ import annotations

import math
import re
from typing import Any

from scaling_lab import dims, models
from scaling_lab.config import mup
from scaling_lab.config.run import RunConfig
from scaling_lab.layouts import (
    IllegalLayout,
    check,
    check_stages,
    check_turns,
    stages_of,
)
from scaling_lab.names import one_of
from scaling_lab.optimizers import make
from scaling_lab.optimizers.rounding import RESTING
from scaling_lab.parallel import policies
from scaling_lab.parallel.low_precision import RECIPES

PRECISIONS = ("float32", "bfloat16", *RECIPES)
#: What gradients may be summed over devices in.
REDUCED = ("float32", "bfloat16")
STACKS = ("auto", "scan", "unroll")
#: Scanned layers of which so many stand in one turn of the loop: ``scan:4``.
TOGETHER = re.compile(r"scan:([1-9]\d*)")
AXIS_TYPES = ("auto", "explicit")


def validate(config: RunConfig, devices: int | None = None) -> None:
    """Raises unless the run can be, before anything is traced.

    Args:
      devices: how many the target has; ``None`` asks the target (``local`` then
        goes unchecked).

    Raises:
      ValueError: what is wrong, by how much, and what would do.
    """
    _check_ranges(config)
    for field, known in (
        ("precision", PRECISIONS),
        ("parameters", RESTING),
        ("axis_type", AXIS_TYPES),
    ):
        one_of(field, getattr(config, field), known)
    if config.reduce is not None:
        one_of("reduce", config.reduce, REDUCED)
    _check_precision(config)
    _check_stack(config)
    _check_parts("batch", config.batch, "accumulate", config.accumulate)
    if config.loss_chunks is not None and not 1 <= config.loss_chunks <= config.model.V:
        raise ValueError(
            f"loss_chunks={config.loss_chunks}: a vocabulary of {config.model.V} is "
            f"cut into 1 to {config.model.V} chunks"
        )
    longest = getattr(config.model, "length", None)
    if longest is not None and config.length > longest:
        raise ValueError(
            f"length={config.length} is more than the {longest} positions of "
            f"{config.family} {config.size}; use --length {longest} or less"
        )
    _check_widths(config.model)
    if config.mup is not None:
        mup.check(config.model, config.mup, config.optimizer.name)
    models.check(config.model, config.length)
    _check_choice(config)
    _check_experts(config)
    make(config.optimizer, config.steps)
    _check_away(config)
    _check_stages(config)
    target = config.parsed_target()
    shapes = {p: x.shape for p, x in dims.leaves(config.abstract_params).items()}
    check(
        config.placed_layout,
        config.dim_sizes,
        shapes,
        target.devices if devices is None and target.chip else devices,
    )


def check_remat(policy: str, verbs: list[str]) -> None:
    """Raises unless a remat policy's names are verbs of the model.

    Raises:
      ValueError: an unknown policy or verb, with the nearest; attention offloaded.
    """
    for part in policy.split(";"):
        kind, _, names = part.partition(":")
        one_of("remat", kind, policies.KINDS)
        if kind not in ("none", "full"):
            for name in names.split(","):
                one_of(f"verb in remat {policy!r}", name, verbs)
    for name in policies.parse(policy).offloaded:
        if name.rpartition("/")[2] == "attend":
            raise ValueError(
                f"remat {policy!r}: a kernel's normalisers go with what {name} "
                f"returns, and they are not offloaded yet; say save:{name}, or leave "
                "it to be made again"
            )


def _check_ranges(config: RunConfig) -> None:
    sizes = dims.sizes(config.model)
    counts = {f: getattr(config, f) for f in ("batch", "length", "steps", "accumulate")}
    for name, value in {**counts, **sizes}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    optimizer = config.optimizer
    rest = {f: getattr(config, f) for f in ("seed", "evaluate_batches", "z_loss")}
    rest |= {f: getattr(optimizer, f) for f in ("warmup", "weight_decay", "final")}
    for name, value in rest.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be a number of at least 0")
    rate, clip = optimizer.learning_rate, optimizer.clip
    if not 0 < rate < math.inf:
        raise ValueError(f"learning_rate={rate}: must be a number above 0")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: must be above 0")


def _check_precision(config: RunConfig) -> None:
    """Raises unless the chip multiplies 8 bits faster than 16."""
    precision, chip = config.precision, config.parsed_target().chip
    if precision not in RECIPES:
        return
    if config.axis_type == "explicit":
        raise ValueError(
            f"precision {precision}: the compiler places scales and codes, which "
            "explicit axes do not leave to it; use --axis-type auto"
        )
    if chip is None or not chip.flops_per_second:  # a CPU's units are not known
        return
    peaks = chip.flops_per_second
    wide = peaks.get("bfloat16") or peaks.get("float16", 0.0)
    faster = [name for name in RECIPES if peaks.get(name, 0.0) > wide]
    if precision not in faster:
        own = peaks.get(precision)
        why = (
            f"multiplies it no faster than 16 bits ({own / 1e12:.0f} TFLOP/s)"
            if own
            else "has no unit for it"
        )
        raise ValueError(
            f"precision {precision}: {chip.name} {why}; it has "
            f"{', '.join([*faster, 'bfloat16' if 'bfloat16' in peaks else 'float32'])}"
        )


def _check_parts(whole: str, size: int, part: str, parts: int) -> None:
    """Raises unless a size divides into equal parts."""
    if parts >= 1 and size % parts == 0:
        return
    near = [n for n in range(1, size + 1) if size % n == 0]
    near.sort(key=lambda n: abs(n - parts))
    raise ValueError(
        f"{whole}={size} does not divide into {part}={parts} equal parts; nearest "
        f"{part}: {', '.join(map(str, near[:3]))}"
    )


def _check_stages(config: RunConfig) -> None:
    layout = config.layout
    if stages_of(layout) > 1 and config.axis_type == "explicit":
        raise IllegalLayout(
            f"layout {layout.name!r}: stages are divided by the compiler, which leaves "
            "explicit axes alone; use --axis-type auto"
        )
    check_stages(layout, config.model.L, config.batch, config.accumulate)
    check_turns(layout, getattr(config.model, "depths", (config.model.L,)))


def _check_away(config: RunConfig) -> None:
    """Raises unless optimizer state that is to rest on the host can."""
    layout, name = config.layout, config.optimizer.name
    if layout.mechanism("optimizer", "device") != "host":
        return
    why = ""
    if stages_of(layout) > 1:
        why = (
            "state comes layer by layer, and stages divide layers; leave "
            "+offload_optimizer out, or the axis stage"
        )
    elif config.axis_type == "explicit":
        why = "the compiler moves what comes, not explicit axes; use --axis-type auto"
    elif name == "adafactor":
        why = "adafactor's state is small; leave it on the device, or use adamw"
    if why:
        raise IllegalLayout(f"layout {layout.name!r}: +offload_optimizer: {why}")


def _check_experts(config: RunConfig) -> None:
    routing = getattr(config.model, "routing", None)
    bound = config.layout.mechanism("experts", "")
    if routing is None:
        if bound:
            raise IllegalLayout(
                f"layout {config.layout.name!r}: +{bound} says how tokens reach "
                f"experts, and {config.family} has none; leave +{bound} out, or ask "
                f"one of {', '.join(models.with_experts())}"
            )
        return
    if bound == "capacity" and routing.choice == "expert":
        raise ValueError(
            "routing choice='expert' gives each expert a full queue, and +capacity "
            "would cut it again; leave +capacity out, or say choice='token'"
        )


def _check_choice(config: RunConfig) -> None:
    if models.sight(config.model).top is None:
        return
    if config.layout.spec("acts", "BT")[1]:
        raise IllegalLayout(
            f"layout {config.layout.name!r}: blocks are chosen from all of a row, and "
            "here devices hold parts of it; divide heads instead, as tensor=2, or say "
            "--mask window=128"
        )
    if config.axis_type == "explicit":
        raise IllegalLayout(
            "blocks that a model chooses are gathered by the compiler's own placement, "
            "which leaves explicit axes alone; use --axis-type auto"
        )


def together(stack: str) -> int:
    """Layers in one turn of the loop over them."""
    found = TOGETHER.fullmatch(stack)
    return int(found[1]) if found else 1


def _check_stack(config: RunConfig) -> None:
    found = TOGETHER.fullmatch(config.stack)
    if found is None:
        one_of("stack", config.stack, (*STACKS, "scan:2"))
        return
    if stages_of(config.layout) > 1:
        raise IllegalLayout(
            f"layout {config.layout.name!r}: a stage scans its own layers one by one; "
            f"stack {config.stack} is for layouts without stages, say scan or unroll"
        )
    turn, group = int(found[1]), config.layout.once_in
    if turn > config.model.L:
        raise ValueError(
            f"stack {config.stack!r}: there are L={config.model.L} layers; say "
            f"scan:{config.model.L} or less, or unroll"
        )
    if turn > 1 and group > 1 and turn % group:
        raise IllegalLayout(
            f"layout {config.layout.name!r}: a turn of the loop holds whole groups of "
            f"+gather_once={group}, which stack {config.stack} is not; say scan, which "
            f"has {group} layers in a turn, or scan:{-(-turn // group) * group}"
        )


def _check_widths(model: Any) -> None:
    if model.N % model.K:
        raise ValueError(
            f"N={model.N} query heads cannot share K={model.K} key-value heads; "
            "N must be a multiple of K"
        )
    if hasattr(model, "rope_base") and model.H % 2:
        raise ValueError(f"H={model.H}: a head's width must be even to be rotated")
