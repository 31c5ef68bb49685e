"""Predicted step time, memory and efficiency of many points at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scaling_lab.cost import calibrations, pipelines
from scaling_lab.cost.communication import Wires
from scaling_lab.cost.compute import Arithmetic
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.memory import kept_per_token, memory, tokens_in_use
from scaling_lab.cost.points import Points
from scaling_lab.cost.shapes import (
    Column,
    Shapes,
    model_flops,
    shapes_of,
)

#: How sharply overlapped times take the larger: 1 would add, infinity take the maximum.
_OVERLAP = 3.0
#: Routing, its kernels and its launches differ more between programs than the rest.
_EXPERTS_VARY = 1.35
#: Share of keys and values passed round that is waited for though attention covers it.
_CHUNKED = 0.25
#: Of the way to the host's memory a program gets this share (50 of 64 GB/s, as
#: `compile.price` assumes of an H100).
_HOST = 0.78


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Columns, one entry a point.

    Attributes:
      step_seconds: of one optimizer step.
      low_seconds: lower end of the 80 % interval.
      high_seconds: upper end of it.
      compute_seconds: matrix products, recomputation included.
      attention_seconds: scores and values, recomputation included.
      memory_seconds: operations bound by memory (norms, activations, residuals).
      communication_seconds: exposed, by mesh axis.
      bubble_seconds: pipeline stages idle.
      optimizer_seconds: the update.
      overhead_seconds: launches and what grows with neither FLOPs nor bytes.
      tokens_per_second_per_chip: of the whole step.
      mfu_causal: model FLOPs (attention counted causally) over the bfloat16 peak.
      hbm_bytes: of one device at its peak.
    """

    step_seconds: Column
    low_seconds: Column
    high_seconds: Column
    compute_seconds: Column
    attention_seconds: Column
    memory_seconds: Column
    communication_seconds: dict[str, Column]
    bubble_seconds: Column
    optimizer_seconds: Column
    overhead_seconds: Column
    tokens_per_second_per_chip: Column
    mfu_causal: Column
    hbm_bytes: Column

    def row(self, index: int) -> dict[str, Any]:
        """One point as plain data: totals, the interval, and seconds by cause."""
        seconds = {
            "products": self.compute_seconds,
            "attention": self.attention_seconds,
            "memory": self.memory_seconds,
            **{f"{axis} exposed": x for axis, x in self.communication_seconds.items()},
            "bubble": self.bubble_seconds,
            "optimizer": self.optimizer_seconds,
            "overhead": self.overhead_seconds,
        }
        return {
            "step_seconds": float(self.step_seconds[index]),
            "step_seconds_low": float(self.low_seconds[index]),
            "step_seconds_high": float(self.high_seconds[index]),
            "tokens_per_second_per_chip": float(self.tokens_per_second_per_chip[index]),
            "mfu_causal": float(self.mfu_causal[index]),
            "hbm_bytes": float(self.hbm_bytes[index]),
            "seconds": {name: float(x[index]) for name, x in seconds.items()},
        }


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where a step's seconds go, before the scale's loss; see `Prediction`."""

    products: Column
    scores: Column
    memory: Column
    exposed: dict[str, Column]
    bubble: Column
    update: Column
    overhead: Column
    scale: Column

    @property
    def step(self) -> Column:
        """All of it."""
        busy = self.products + self.scores + self.memory + self.bubble + self.update
        return (busy + self.overhead + sum(self.exposed.values())) * self.scale


def predict(points: Points, calibration: Calibration | None = None) -> Prediction:
    """Predicts every point.

    Args:
      points: what to predict.
      calibration: efficiencies instead of the fitted ones.
    """
    eff = calibration or calibrations.frozen()
    parts = parts_of(points, eff)
    step = parts.step
    spread = np.exp(eff.widths(points) * unsure(points))
    flops = model_flops(points)
    peak = points.bf16_flops_per_second * points.devices
    return Prediction(
        step_seconds=step,
        low_seconds=step / spread,
        high_seconds=step * spread,
        compute_seconds=parts.products * parts.scale,
        attention_seconds=parts.scores * parts.scale,
        memory_seconds=parts.memory * parts.scale,
        communication_seconds={k: v * parts.scale for k, v in parts.exposed.items()},
        bubble_seconds=parts.bubble * parts.scale,
        optimizer_seconds=parts.update * parts.scale,
        overhead_seconds=parts.overhead * parts.scale,
        tokens_per_second_per_chip=points.global_batch_tokens / step / points.chips,
        mfu_causal=flops / peak / step,
        hbm_bytes=memory(points).hbm_bytes,
    )


def unsure(points: Points) -> Column:
    """How much wider than a dense run's a point's interval is: experts vary more."""
    return np.where(points.n_experts > 0, _EXPERTS_VARY, 1.0)


def parts_of(points: Points, eff: Calibration) -> Parts:
    """Prices a step."""
    p = _moving(points)
    s = shapes_of(p)
    work, wires = Arithmetic(p, s, eff), Wires(p, s, eff)
    again = work.again()
    moe = s.moe_layers / p.layers
    dense = work.feed_forward(p.d_ff, p.tensor)
    routed = work.experts() + work.feed_forward(p.shared_d_ff, p.tensor)
    block = work.attention_products() + (1 - moe) * dense + moe * routed
    later = block - moe * work.experts()
    wider = work.wide_gradients(later)
    products = block * (1 + again["products"]) + wider
    scores = work.scores() * (3.5 + again["scores"])
    memory = work.elementwise() * (1 + again["elementwise"])
    head = work.head()

    forwards = 2 + s.recompute
    tensor = wires.tensor() * forwards * eff.of("tensor_exposed", p)
    tensor = tensor * np.where(p.overlap > 0, 0.4, 1.0)
    experts = moe * wires.experts() * forwards * eff.of("expert_exposed", p)
    context = _context(p, s, wires.context(), scores)
    hidden = products + scores + memory + tensor + experts + context
    held, apart = held_by(p, s)
    traffic = wires.fsdp(held / p.layers, apart / p.layers)
    waited = eff.of("weights_exposed", p)
    fsdp = _beside(hidden, (1 - waited) * traffic) - hidden + waited * traffic
    host = _host(p, s, hidden)
    layer = hidden + fsdp + host
    routed_launch = 1 + moe * (eff.of("routed_launch", p) - 1)
    launch = eff.of("launch", p) * routed_launch * (1 + s.recompute / 3)
    launched = _beside(layer, launch) - layer

    total = p.layers * (layer + launched) + head
    bubble = pipelines.waited(p, total, layer + launched, head, later / 3 + wider)
    blocks = s.microbatches * p.layers / p.stage
    updated = _rests(p, held, apart)
    data = pipelines.reduced(p, wires, updated) * eff.of("data_exposed", p)
    owned = updated / np.where(p.zero_stage >= 1, p.data, 1)
    return Parts(
        products=blocks * products + s.microbatches * head / p.stage,
        scores=blocks * scores,
        memory=blocks * memory,
        exposed={
            "tensor": blocks * tensor,
            "expert": blocks * experts,
            "context": blocks * context,
            "fsdp": blocks * fsdp,
            "stage": pipelines.handed_on(p, wires)
            + pipelines.brought(p, wires, updated)
            + pipelines.gathered(p, wires, held),
            "data": data,
            "host": blocks * host,
        },
        bubble=bubble,
        # State that is away comes and goes once a step, with nothing left to do beside.
        update=work.update(owned) + 2 * owned * p.away_bytes / p.host_bytes_per_second,
        overhead=blocks * launched + eff.of("step", p),
        scale=1 + eff.of("scale", p) * np.log2(np.maximum(p.devices / 8, 1)),
    )


def _moving(p: Points) -> Points:
    """Of weights that fsdp divides, ZeRO-1 and 2 over data move what ZeRO-3 does."""
    return p.replace(zero_stage=np.where(p.fsdp > 1, 3, p.zero_stage))


def _context(p: Points, s: Shapes, moved: Column, scores: Column) -> Column:
    """What one block waits for its keys, or for the exchange before and after it."""
    rotated = 3 * moved
    keys = _beside(scores, rotated) - scores + _CHUNKED * rotated
    # A step of a ring takes the next keys beside its own: of C steps the last takes
    # none. A TPU's compiler does so; a GPU's leaves of a ring's keys no less exposed
    # than of gathered ones (8B on 64 H100s, compiled: 53 ms a step against 25).
    beside = scores * (1 - 1 / p.context)
    step_by_step = np.maximum(rotated - beside, 0.0)
    keys = np.where((p.ring_of_keys > 0) & (p.torus_dims > 0), step_by_step, keys)
    # Attention begins when all is there, and what is made again is exchanged again.
    return np.where(p.ulysses > 0, (2 + (s.recompute > 0)) * moved, keys)


def _host(p: Points, s: Shapes, busy: Column) -> Column:
    """What a block waits for the host's memory.

    Going forward results leave behind what is computed, in a third of a block's time.
    Going backward nothing hides them: XLA begins to read in the turn of the loop that
    needs them (70B on 256 H100s, compiled: 14 ms a layer, all of it waited for).
    """
    moved = kept_per_token(p) * p.offload * tokens_in_use(p)
    moved = moved / (p.host_bytes_per_second * _HOST)
    forward = busy / (3 + s.recompute)
    return _beside(forward, moved) - forward + moved


def _rests(p: Points, held: Column, apart: Column) -> Column:
    """Parameters that one device updates, of `held_by`'s."""
    experts = apart / np.maximum(p.fsdp / p.expert, 1)
    return np.where(p.zero_stage >= 3, held / p.fsdp + experts, held + apart)


def held_by(p: Points, s: Shapes) -> tuple[Column, Column]:
    """Parameters of one device's stage and tensor shard, before fsdp or ZeRO.

    Returns:
      those that all devices of fsdp share, and of experts that an axis holds apart.
    """
    dense = (s.dense_params + s.embedding_params) / p.tensor / p.stage
    experts = s.expert_params / p.expert / p.stage
    apart = np.where((p.expert > 1) & (p.n_experts > 0), experts, 0.0)
    return dense + experts - apart, apart


def _beside(first: Column, second: Column) -> Column:
    """Seconds of two things that overlap, but not perfectly."""
    large, small = np.maximum(first, second), np.minimum(first, second)
    share = np.divide(small, large, out=np.zeros_like(large), where=large > 0)
    return large * (1 + share**_OVERLAP) ** (1 / _OVERLAP)
