"""The few numbers that are not physics: each with a name, a value and its evidence.

An efficiency of a point is a product: its general value, times a factor of the chip's
family, times one of the chip, of the software and of the precision, each 1 until rows
say otherwise. So an unseen chip is priced as its family is, and an unseen family as
all are: partial pooling, with the priors' widths as the strength of the pull.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import numpy as np

from scaling_lab.cost.points import PRECISIONS, STACKS, Points


@dataclasses.dataclass(frozen=True)
class Prior:
    """What is believed before any row: the median and the spread of its logarithm.

    Attributes:
      value: median. spread: standard deviation of the logarithm.
      levels: what it may depend on besides, and how far: level -> spread.
      says: what it is, with its unit.
      known: medians of some labels, ``chip:h100`` -> value, where they are not
        ``value``.
    """

    value: float
    spread: float
    levels: Mapping[str, float]
    says: str
    known: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def centre(self, label: str) -> float:
        """The median of a label's log factor."""
        return math.log(self.known.get(label, self.value) / self.value)


PRIORS: dict[str, Prior] = {
    "matmul": Prior(
        0.80,
        0.05,
        {"chip": 0.12, "stack": 0.08},
        "share of the 16-bit peak that a large matrix product reaches",
        # Measured products: XLA's table of them (sm_90), AI-Hypercomputer/tpu-recipes
        # (v6e at 8192 cubed), stas00/ml-engineering (the others; as remembered).
        {
            "chip:a100": 0.86,
            "chip:a100-40": 0.86,
            "chip:h100": 0.80,
            "chip:h200": 0.80,
            "chip:h100-hbm2e": 0.72,
            "chip:b200": 0.78,
            "chip:gb200": 0.75,
            "chip:mi300x": 0.51,
            "chip:tpu-v6e": 0.90,
            "chip:tpu-v5p": 0.95,
            "chip:tpu-v5e": 0.95,
            "chip:tpu-v4": 0.95,
        },
    ),
    "low_precision": Prior(
        0.85,
        0.06,
        {"precision": 0.08, "stack": 0.12},
        "share of a low precision's gain over 16 bits that a large product keeps",
    ),
    "tile": Prior(
        0.8e6,
        0.2,
        {"family": 0.3},
        "output elements of a product that fill the chip half",
    ),
    "depth": Prior(170.0, 0.2, {"family": 0.3}, "contracted length lost to start-up"),
    "attention": Prior(
        0.45,
        0.1,
        {"chip": 0.15, "stack": 0.15},
        "share of the 16-bit peak that fused attention reaches",
    ),
    "memory": Prior(
        0.85,
        0.05,
        {"chip": 0.05},
        "share of the memory's rate that streaming reaches",
        # AI-Hypercomputer/tpu-recipes, microbenchmark of a copy.
        {"chip:tpu-v6e": 0.83},
    ),
    "passes": Prior(
        1.0,
        0.15,
        {"stack": 0.3},
        "passes over memory of norms, gates and residuals, against fused ones",
    ),
    "scores": Prior(
        1.0, 0.3, {}, "passes over unfused attention scores, against 4 forward"
    ),
    "link": Prior(0.7, 0.1, {"family": 0.2}, "share of the scale-up links' rate"),
    "network": Prior(0.6, 0.15, {"family": 0.3}, "share of the network's rate"),
    "tensor_exposed": Prior(
        0.8,
        0.1,
        {"stack": 0.2},
        "share of tensor-parallel traffic that is waited for",
        {"stack:xla-tpu": 0.4},
    ),
    "data_exposed": Prior(
        0.4, 0.2, {"stack": 0.3}, "share of the gradients' traffic that is waited for"
    ),
    "weights_exposed": Prior(
        0.1,
        0.3,
        {"stack": 0.4},
        "share of ZeRO-3's traffic that is waited for though compute could hide it",
        # XLA gathers a layer ahead, and its compiler says what stays exposed.
        {"stack:xla-tpu": 0.05},
    ),
    "expert_exposed": Prior(
        0.8, 0.15, {"stack": 0.3}, "share of the experts' traffic that is waited for"
    ),
    "launch": Prior(
        1e-3,
        0.4,
        {"stack": 0.7},
        "seconds to launch one block, forward and backward",
        {"stack:xla-tpu": 2e-4},
    ),
    "routed_launch": Prior(
        5.0, 0.3, {"stack": 0.5}, "the same of a block with experts, over a dense one's"
    ),
    "experts": Prior(
        0.8,
        0.07,
        {"stack": 0.25, "family": 0.1},
        "share of a dense product's rate that grouped expert products reach",
    ),
    "routing": Prior(
        1.0, 0.1, {"stack": 0.3}, "passes over memory of routing, against 8"
    ),
    "casts": Prior(
        1.0, 0.2, {"stack": 0.3}, "passes over memory of casts to low precision"
    ),
    "step": Prior(0.01, 0.5, {"stack": 0.5}, "seconds of a step outside its blocks"),
    "scale": Prior(
        0.004, 0.3, {}, "time lost to the slowest, per doubling beyond 8 devices"
    ),
}


def family_of(chip: str) -> str:
    """The family a chip is pooled with."""
    for family, begins in {
        "ampere": ("a100", "a800", "a40"),
        "hopper": ("h100", "h200", "h800", "gh200", "h20"),
        "blackwell": ("b200", "b300", "gb200", "gb300"),
        "volta": ("v100",),
        "tpu": ("tpu",),
        "instinct": ("mi",),
        "cpu": ("cpu",),
    }.items():
        if chip.startswith(begins):
            return family
    return "other"


@functools.cache
def keys() -> tuple[str, ...]:
    """Names of the general values, in order."""
    return tuple(PRIORS)


class Calibration:
    """Log factors by name: ``matmul``, ``matmul@chip:h100``, ``launch@stack:xla``.

    A name that is absent counts as its prior.
    """

    def __init__(
        self,
        logs: Mapping[str, float] | None = None,
        half_width: float = 0.25,
        nudge: tuple[str, float] | None = None,
        own: Mapping[str, Calibration] | None = None,
    ) -> None:
        self.logs = dict(logs or {})
        #: Half of a dense run's 80 % interval, in the logarithm of its step.
        self.half_width = half_width
        #: Chips that were measured by themselves, and what holds of each instead.
        self.own = dict(own or {})
        self._nudge = nudge or ("", 0.0)

    def nudged(self, name: str, by: float) -> Calibration:
        """The same with one efficiency's logarithm moved, for every point alike."""
        own = {chip: each.nudged(name, by) for chip, each in self.own.items()}
        return Calibration(self.logs, self.half_width, (name, by), own)

    def on(self, chips: Iterable[str]) -> Calibration:
        """What holds of some chips, without those of their own that others have."""
        logs, width = dict(self.logs), self.half_width
        for each in (self.own[chip] for chip in chips if chip in self.own):
            logs, width = logs | each.logs, each.half_width
        return Calibration(logs, width)

    def of(self, name: str, points: Points) -> np.ndarray:
        """An efficiency, one value a point."""
        found = np.exp(self._log(name, points))
        for chip, own in self.own.items():
            if np.any(mine := points.chip == chip):
                found = np.where(mine, own.of(name, points), found)
        return found

    def widths(self, points: Points) -> np.ndarray:
        """Half of a dense run's 80 % interval, in the logarithm, one a point."""
        found = np.full(len(points), self.half_width)
        for chip, own in self.own.items():
            found = np.where(points.chip == chip, own.half_width, found)
        return found

    def _log(self, name: str, points: Points) -> np.ndarray:
        prior = PRIORS[name]
        total = np.full(len(points), self.logs.get(name, np.log(prior.value)))
        if name == self._nudge[0]:
            total += self._nudge[1]
        for level in prior.levels:
            labels, inverse = levels_of(points, level)
            factors = [
                self.logs.get(f"{name}@{level}:{x}", prior.centre(f"{level}:{x}"))
                for x in labels
            ]
            total = total + np.asarray(factors)[inverse]
        return total


def levels_of(points: Points, level: str) -> tuple[list[str], np.ndarray]:
    """The labels that a level takes among points, and each point's label."""
    cache = points.__dict__.setdefault("_levels", {})
    if level not in cache:
        cache[level] = _levels(points, level)
    return cache[level]


def _levels(points: Points, level: str) -> tuple[list[str], np.ndarray]:
    if level in ("chip", "family"):
        chips, inverse = np.unique(points.chip.astype(str), return_inverse=True)
        labels = [str(c) if level == "chip" else family_of(str(c)) for c in chips]
        return labels, inverse
    if level == "precision":
        codes, inverse = np.unique(points.precision, return_inverse=True)
        return [PRECISIONS[int(code)] for code in codes], inverse
    # One compiler, but two programs: what XLA does on a TPU says little of a GPU.
    tpu = (points.torus_dims > 0) & (points.stack == STACKS.index("xla"))
    codes, inverse = np.unique(points.stack + len(STACKS) * tpu, return_inverse=True)
    names = [*STACKS, "xla-tpu"]
    return [names[int(code)] for code in codes], inverse
