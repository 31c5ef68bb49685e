"""What a pipeline costs beside its layers: stages that wait, and what they hand on.

Two kinds. Stages of most software do each task as soon as what it needs has arrived.
Ours are one array program (`parallel.pipeline`, `parallel.alternating`): in a tick all
stages do the same kind of task, on what is there if they have nothing to do, the
longest stage sets the pace, and all share embedding, head and loss. Stages that
alternate make each layer's results once more before they go backward.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.cost.communication import Wires
from scaling_lab.cost.points import Points
from scaling_lab.cost.shapes import (
    Column,
    are_stages,
    is_schedule,
    kept_gathered,
    says_sums,
)


def ticks(p: Points) -> Column:
    """Chunks of layers that one of our stages goes through in a pass of a step."""
    return p.microbatches * p.virtual_stages + p.stage - 1


def waited(
    p: Points, total: Column, layer: Column, head: Column, later: Column
) -> Column:
    """Seconds of a step in which stages do nothing that counts.

    Args:
      total: of one microbatch through all layers and the head. layer: through one.
      head: through the head. later: of one layer, what zero bubble makes later.
    """
    theirs = _uneven(p, total, layer, head)
    return np.where(p.lockstep > 0, _in_step(p, layer, later), theirs)


def _uneven(p: Points, total: Column, layer: Column, head: Column) -> Column:
    """Uneven stages, and the ramp."""
    mean = total / p.stage
    whole = np.ceil(p.layers / p.stage - 1e-9)
    slowest = np.where(p.virtual_stages > 1, mean, whole * layer + head)
    slowest = np.where(p.stage > 1, np.maximum(slowest, mean), mean)
    ramp = (total - mean) / p.virtual_stages
    ramp = np.where(is_schedule(p, "zero_bubble"), ramp / 3, ramp)
    return p.microbatches * (slowest - mean) + np.where(p.stage > 1, ramp, 0.0)


def _in_step(p: Points, layer: Column, later: Column) -> Column:
    """Every tick costs the longest chunk, but what is made later has M of them."""
    longest = np.ceil(p.layers / (p.stage * p.virtual_stages) - 1e-9)
    spared = np.where(is_schedule(p, "zero_bubble"), (p.stage - 1) * later, 0.0)
    used = p.microbatches * p.layers / p.stage * layer
    return np.where(p.stage > 1, longest * (ticks(p) * layer - spared) - used, 0.0)


def handed_on(p: Points, wires: Wires) -> Column:
    """Seconds in which results go from stage to stage, forward and back."""
    one, times = wires.stages(), p.microbatches
    # With pieces to interleave, what is handed on travels beside another's work.
    hidden = np.where(p.virtual_stages > 1, 0.3, 1.0)
    theirs = 2 * p.virtual_stages * times * hidden
    # Ours stand at every tick's end; and the last stage's results go to all, to share
    # the head, as the first stage's gradients do: sums over all stages.
    shared = 2 * (times + ticks(p)) * (p.stage - 1) / p.stage
    ours = 2 * ticks(p) + shared
    return one * np.where(p.lockstep > 0, ours, theirs)


def reduced(p: Points, wires: Wires, held: Column) -> Column:
    """Seconds in which gradients of so many parameters go over ``data``.

    Our stages' copies are summed once, in the precision of the sum. Where that is not
    done (`layouts.copies.copies_of`) what each microbatch gives is reduced, in 16 bits
    or in what the run says, and idle stages' too; what is made later is made by all.
    """
    once = wires.gradients(held)
    passes = ticks(p) / p.virtual_stages
    passes = np.where(is_schedule(p, "zero_bubble"), p.microbatches, passes)
    said = says_sums(p)
    wide = np.where(said, p.reduced_bytes, 2.0)
    whole = np.where(p.zero_stage == 2, 1, 2) * wide
    handed_back = np.where((p.zero_stage == 1) | (p.zero_stage == 2), 2.0, 0.0)
    late = is_schedule(p, "zero_bubble") | (p.zero_stage == 2) | (p.n_experts > 0)
    late = late | said
    payload = held * (np.where(late, whole * passes, 2 * p.grad_bytes) + handed_back)
    ours = wires.collective("data", p.data, payload)
    return np.where(are_stages(p), ours, once)


def rearranged(p: Points) -> Column:
    """1 where our layers rest by width, and a step brings them to their stages first.

    So they do where a stage has several chunks, or stages differ in layers.
    """
    moved = (p.virtual_stages > 1) | (p.layers % p.stage != 0)
    return 1.0 * (are_stages(p) & moved)


def gathered(p: Points, wires: Wires, held: Column) -> Column:
    """Seconds in which a stage's parameters are gathered, before its first tick."""
    once = are_stages(p) & (kept_gathered(p) > 0) & (p.zero_stage >= 3)
    return once * wires.collective("fsdp", p.fsdp, held * p.param_bytes)


def brought(p: Points, wires: Wires, held: Column) -> Column:
    """Seconds in which so many parameters go to their stages, and gradients back."""
    size = rearranged(p) * held * (p.param_bytes + p.grad_bytes)
    return wires.collective("stage", p.stage, size)
