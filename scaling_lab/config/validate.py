"""Whether a run can be: every check in one place, before anything is traced."""

from __future__ import annotations

from typing import Any

from scaling_lab import dims
from scaling_lab.config.run import RunConfig
from scaling_lab.layouts import check
from scaling_lab.names import one_of
from scaling_lab.optimizers import make

PRECISIONS = ("float32", "bfloat16")
STACKS = ("auto", "scan", "unroll")
AXIS_TYPES = ("auto", "explicit")


def validate(config: RunConfig, devices: int | None = None) -> None:
    """Raises unless the run can be, before anything is traced.

    Args:
      devices: how many the target has; ``None`` asks the target (``local`` then
        goes unchecked).

    Raises:
      ValueError: what is wrong, by how much, and what would do.
    """
    for field in ("batch", "length", "steps", "accumulate"):
        if getattr(config, field) < 1:
            raise ValueError(f"{field}={getattr(config, field)}: must be at least 1")
    for field, known in (
        ("precision", PRECISIONS),
        ("stack", STACKS),
        ("axis_type", AXIS_TYPES),
    ):
        one_of(field, getattr(config, field), known)
    if config.batch % config.accumulate:
        near = [n for n in range(1, config.batch + 1) if config.batch % n == 0]
        near.sort(key=lambda n: abs(n - config.accumulate))
        raise ValueError(
            f"batch={config.batch} does not divide into accumulate="
            f"{config.accumulate} microbatches; nearest: {near[:3]}"
        )
    if config.loss_chunks is not None and (
        config.loss_chunks < 1 or config.length % config.loss_chunks
    ):
        near = [n for n in range(1, config.length + 1) if config.length % n == 0]
        near.sort(key=lambda n: abs(n - (config.loss_chunks or 1)))
        raise ValueError(
            f"loss_chunks={config.loss_chunks} does not cut length={config.length} "
            f"into equal chunks; nearest: {near[:3]}, or leave it out"
        )
    longest = getattr(config.model, "length", None)
    if longest is not None and config.length > longest:
        raise ValueError(
            f"length={config.length} is more than the {longest} positions of "
            f"{config.family} {config.size}; use --length {longest} or less"
        )
    _check_widths(config.model)
    make(config.optimizer, config.steps)
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
      ValueError: an unknown policy or verb, with the nearest.
    """
    kind, _, names = policy.partition(":")
    one_of("remat", kind, ("none", "full", "save", "recompute"))
    if kind in ("save", "recompute"):
        for name in names.split(","):
            one_of(f"verb in remat {policy!r}", name, verbs)


def _check_widths(model: Any) -> None:
    if model.N % model.K:
        raise ValueError(
            f"N={model.N} query heads cannot share K={model.K} key-value heads; "
            "N must be a multiple of K"
        )
    if hasattr(model, "rope_base") and model.H % 2:
        raise ValueError(f"H={model.H}: a head's width must be even to be rotated")
