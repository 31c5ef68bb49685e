"""Measured: what the clock says, and nothing the clock did not say.

A step is timed from its dispatch to the moment its results are there
(`block_until_ready`); asynchronous dispatch would make the first steps look free. The
warm-up steps, the first above all, are never counted, and compiling is timed apart.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scaling_lab import cost
from scaling_lab.config import RunConfig
from scaling_lab.hardware import Chip, chip_for
from scaling_lab.train import Program, TrainState, check_finite

#: Steps that are never counted: compilation's leftovers, cold caches, first touches.
WARMUP = 2


def spread(seconds: Sequence[float]) -> dict[str, Any] | None:
    """Median, 5th and 95th percentile and how many; ``None`` of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def percentile(p: float) -> float:
        return ordered[round(p * (len(ordered) - 1))]

    return {
        "median": statistics.median(ordered),
        "p5": percentile(0.05),
        "p95": percentile(0.95),
        "repeats": len(ordered),
        "all": list(seconds),
    }


class Routed:
    """What the steps of a run said of their experts, as its record keeps it.

    Loads are a mean and a last one, since one for every step would be most of a record.
    """

    #: Of one step: the mean of its layers. Those of every step are kept of the first.
    EVERY, ONCE = ("imbalance", "dropped"), ("entropy", "balance", "z")

    def __init__(self):
        self.steps: list[int] = []
        self.values: dict[str, list[float]] = {k: [] for k in self.EVERY + self.ONCE}
        self.load_E: Any = 0.0
        self.last_E: Any = None

    def add(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Takes a step's metrics, which say nothing where there are no experts."""
        said = metrics.get("experts")
        if said is None:
            return
        self.steps.append(number)
        for name, values in self.values.items():
            values.append(float(said[name]))
        self.last_E = np.asarray(said["load_E"], np.float64)
        self.load_E = self.load_E + self.last_E

    def column(self) -> dict[str, Any]:
        """``experts`` of the record's ``measured`` column; nothing without experts.

        ``load_E`` is each expert's share of rows, in millionths; ``imbalance`` the
        busiest expert's over the mean; ``dropped`` the share of rows that found no
        place; ``entropy`` of a token's affinities, nats; ``balance`` and ``z`` the
        losses without their weights. Means are over steps.
        """
        if not self.steps:
            return {}
        told: dict[str, Any] = {"steps": list(self.steps)}
        for name, values in self.values.items():
            told[name] = {"mean": statistics.fmean(values), "final": values[-1]}
            if name in self.EVERY:
                told[name]["values"] = list(values)
        means_E = self.load_E / len(self.steps)
        told["load_E"] = {
            name: np.round(load_E, 6).tolist()
            for name, load_E in (("mean", means_E), ("final", self.last_E))
        }
        return {"experts": told}


def train(
    program: Program,
    state: TrainState,
    batches: Iterable[Any],
    on_step: Callable[[int, float, float], None] = lambda *_: None,
    done: int = 0,
    routed: Routed | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains and times every step by itself.

    Args:
      on_step: called with the step's number, its loss and its seconds.
      done: steps before the first batch's.
      routed: what those said of their experts; it is told what these say.

    Returns:
      the last state, and of the record's ``measured`` column what steps say.

    Raises:
      NotFinite: a loss or gradient is no number.
    """
    seconds, losses = [], []
    routed = Routed() if routed is None else routed
    for number, batch in enumerate(batches, start=done + 1):
        placed = jax.block_until_ready(program.put(batch))
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(program.step(state, placed))
        seconds.append(time.perf_counter() - start)
        check_finite(program, number, state, placed, metrics)
        losses.append(float(metrics["loss"]))
        routed.add(number, metrics)
        on_step(number, losses[-1], seconds[-1])
    return state, {
        "step_seconds": spread(seconds[WARMUP:]),
        "loss": {
            "steps": list(range(done + 1, done + len(losses) + 1)),
            "values": losses,
            "final": losses[-1] if losses else None,
        },
        **routed.column(),
        "peak_bytes": device_peak_bytes(),
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def throughput(config: RunConfig, step_seconds: float | None) -> dict[str, Any]:
    """Tokens per second, and MFU in every named convention, HFU apart.

    MFU is ``None`` where the chip's peak is not known, as on a CPU.
    """
    per_token = cost.per_token(config)
    executed = cost.executed_per_token(config)
    rate = config.tokens_per_step / step_seconds if step_seconds else None
    chip = target_chip(config)
    peak = chip.flops_per_second.get(config.precision) if chip else None
    devices = config.layout.devices
    chips = devices / (chip.devices_per_chip or 1) if chip else devices

    def used(flops: float) -> float | None:
        return rate * flops / (peak * chips) if rate and peak else None

    return {
        "tokens_per_second": rate,
        "tokens_per_second_per_device": rate / devices if rate else None,
        "flops_per_token": per_token,
        "executed_flops_per_token": executed,
        "mfu": {name: used(flops) for name, flops in per_token.items()},
        "hfu": used(executed),
        "peak_flops_per_second": peak,
    }


def target_chip(config: RunConfig) -> Chip | None:
    """The chip whose peak counts: the target's, or that of the devices present."""
    target = config.parsed_target()
    if target.chip is not None:
        return target.chip
    return chip_for(jax.devices()[0].device_kind)


def device_peak_bytes() -> int | None:
    """The most memory any device held, where the backend says; CPUs do not."""
    peaks = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            peaks.append(stats["peak_bytes_in_use"])
    return max(peaks) if peaks else None
