"""Bytes of one device, as columns: weights, gradients, optimizer, activations, rest.

What rests on a device follows from the tables (ZeRO: Rajbhandari et al. 2020, section
5); activations from Korthikanti et al. 2022, equations 1 to 5, and from the residuals
of our own blocks (`activations`); how many microbatches are in flight from the
schedule (GPipe: Huang et al. 2019; 1F1B and interleaving: Narayanan et al. 2021,
section 2.2; ZB-H1: Qi et al. 2023, section 2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scaling_lab.cost import activations, pipelines
from scaling_lab.cost.points import REMATS, SCHEDULES, Points
from scaling_lab.cost.shapes import alternates, are_stages, is_schedule, kept_gathered

#: Logits of one device that exist at a time (`parallel.cross_entropy.KEEP_ELEMENTS`).
LOGIT_ELEMENTS = 2**26
#: Layers whose gathered or cast weights exist at a time: the one in use and the next.
LAYERS_IN_USE = 2
#: Layers' results on their way to the host's memory or back at a time.
LAYERS_ON_THE_WAY = 2

Array = np.ndarray


class Memory(NamedTuple):
    """Bytes of the fullest device by what they are; ``hbm_bytes`` is their sum.

    Attributes:
      parameter_bytes: weights as they rest.
      gradient_bytes: gradients as they are accumulated.
      optimizer_bytes: moments, and the master copy where weights rest narrower.
      activation_bytes: what the blocks keep for the backward pass, all microbatches
        in flight together.
      logits_bytes: logits with their gradient, where they are made.
      temporary_bytes: weights gathered for use, one block at work, what is on its way.
    """

    parameter_bytes: Array
    gradient_bytes: Array
    optimizer_bytes: Array
    activation_bytes: Array
    logits_bytes: Array
    temporary_bytes: Array

    @property
    def hbm_bytes(self) -> Array:
        """All of it."""
        return sum(self[1:], self[0])

    def take(self, index: Array) -> Memory:
        """The rows at an index."""
        return Memory(*(column[index] for column in self))


def memory(points: Points) -> Memory:
    """Bytes of the fullest device of every point.

    Of a pipeline the first stage (embedding, most microbatches in flight) and the last
    (head, logits) are compared and the fuller is told.
    """
    ends = [_stage(points, last) for last in (False, True)]
    fuller = ends[1].hbm_bytes > ends[0].hbm_bytes
    return Memory(
        *(np.where(fuller, b, a) for a, b in zip(ends[0], ends[1], strict=True))
    )


def _stage(points: Points, last: bool) -> Memory:
    weights = parameters(points)
    rests, reduced, state = shards(points)
    tokens = tokens_in_use(points)
    layers = fullest(points)
    kept = kept_per_token(points)
    flight = in_flight(points, last=last)
    head = last | (points.stage == 1)
    logits = np.where(head, _logits(points, tokens), 0.0)
    ends = np.where(head, 3, 1) * activations.input_bytes(points) * tokens
    # ZeRO++'s second copy of the weights, in 16 bits, over the scale-up network alone.
    node = np.minimum(points.scale_up, points.fsdp)
    near = np.where(points.near_again > 0, 2 * weights.over(node), 0.0)
    return Memory(
        parameter_bytes=weights.over(rests) * points.param_bytes + near,
        gradient_bytes=weights.over(reduced) * points.grad_bytes * _copies(points),
        optimizer_bytes=weights.over(state) * points.optimizer_bytes,
        activation_bytes=kept * tokens * layers * flight * (1 - points.offload)
        + _passing(points, tokens),
        logits_bytes=logits + ends,
        temporary_bytes=_temporary(points, weights, kept)
        + pipelines.rearranged(points)
        * weights.layers
        / rests
        * (points.param_bytes + points.grad_bytes),
    )


def fullest(points: Points) -> Array:
    """Layers of the stage that holds most."""
    return np.ceil(points.layers / points.stage - 1e-9)


class Weights(NamedTuple):
    """Parameters of one device before ZeRO divides them.

    Attributes:
      layers: in blocks, experts apart. ends: in embedding and head.
      experts: in routed experts, before ``expert``, the ways they are divided, does.
      in_layer: of the fullest block, experts as they are divided.
    """

    layers: Array
    ends: Array
    experts: Array
    expert: Array
    in_layer: Array

    def over(self, ways: Array) -> Array:
        """Parameters of one device when ``ways`` devices share them.

        The axis of experts is among the ways, so experts are never divided twice.
        """
        experts = self.experts / np.maximum(self.expert, ways)
        return (self.layers + self.ends) / ways + experts


def parameters(points: Points) -> Weights:
    """Parameters of one device: over ``tensor`` and ``stage``, and nothing else.

    A model's count, where it is known, decides over the sum of its dims: what the dims
    do not explain (biases, learned positions) is taken to be divided like the rest.
    """
    width, layers = points.d_model, points.layers
    matrices = 2 + points.gated
    _, tensor, keys = activations.parts(points)
    grouped = 2 * width * points.kv_heads * points.head_dim
    queries = 2 * width * points.n_heads * points.head_dim
    # Latent attention is one number: its ranks are in no column.
    latent = ~np.isnan(points.attention_params)
    grouped = np.where(latent, 0.0, grouped)
    queries = np.where(latent, points.attention_params, queries)
    sparse = activations.sparse_layers(points)
    wide = points.d_ff * (layers - sparse) + points.shared_d_ff * sparse
    ffn = matrices * width * wide
    router = sparse * width * points.n_experts
    experts = sparse * points.n_experts * matrices * width * points.expert_d_ff
    tables = np.where(points.tied > 0, 1, 2) * points.vocab * width
    dims = layers * (queries + grouped) + ffn + router + experts + tables
    norms = 2 * layers * width + width
    rest = np.where(np.isnan(points.params), norms, points.params - dims)
    norms = np.clip(rest, 0, norms)
    divided = (layers * queries + ffn + rest - norms) / tensor
    divided = divided + layers * grouped / keys + router + norms
    # Of a pipeline's ends the first holds the embedding and the last the head.
    tables = np.where(points.stage > 1, 1.0, 2 - points.tied) * points.vocab * width
    expert = np.maximum(points.expert, 1)
    in_layer = divided / layers
    in_layer = in_layer + experts / tensor / expert / np.maximum(sparse, 1)
    share = fullest(points) / layers
    return Weights(
        layers=divided * share,
        ends=tables / tensor,
        experts=experts / tensor * share,
        expert=expert,
        in_layer=in_layer,
    )


def shards(points: Points) -> tuple[Array, Array, Array]:
    """Devices that share a weight, its gradient and its optimizer state.

    ZeRO-3 shares all three over ``fsdp`` (and ``context``, which holds the same
    weights); ZeRO-1 shares the state and ZeRO-2 the gradient too over ``data``.
    """
    stage = points.zero_stage
    same = np.where(stage > 0, points.context, 1.0)
    rests = points.fsdp * np.where(stage == 3, same, 1.0)
    wide = points.fsdp * points.data * same
    reduced = np.where(stage == 2, wide, rests)
    state = np.where((stage == 1) | (stage == 2), wide, rests)
    return rests, reduced, state


def tokens_in_use(points: Points) -> Array:
    """Tokens of one microbatch on one device, ``tensor`` apart."""
    return points.microbatch_seqs * points.seq_len / points.context


def in_flight(points: Points, *, last: bool = False) -> Array:
    """Microbatches whose activations a device holds at once, in whole shares of it.

    On the first stage 1F1B holds as many as there are stages, GPipe all of them, and
    interleaving ``1 + (p-1)/(pm)`` times as many as 1F1B (Korthikanti et al. 2022,
    section 4.2.3); ZB-H1 holds what 1F1B does, on every stage. Ours hold what each
    tick leaves, or, where they alternate, one that is made again (see `_passing`).
    """
    stages, count, pieces = points.stage, points.microbatches, points.virtual_stages
    one = np.where(last, 1.0, stages)
    ours = np.where(alternates(points) > 0, 1.0, pipelines.ticks(points) / pieces)
    # Chunks begun before the first backward, and the one in use: 2(p-1-r) + (v-1)p + 1.
    begun = np.where(last, 0.0, 2 * (stages - 1)) + (pieces - 1) * stages + 1
    chunks = np.where(pieces > 1, begun / pieces, one)
    held = np.select(
        [
            points.schedule == SCHEDULES.index("gpipe"),
            points.schedule == SCHEDULES.index("interleaved"),
            points.schedule == SCHEDULES.index("zero_bubble"),
        ],
        [count, chunks, stages],
        one,
    )
    held = np.where(points.lockstep > 0, ours, np.minimum(held, count))
    return np.where(stages > 1, held, 1.0)


def _passing(points: Points, tokens: Array) -> Array:
    """What our stages hold beside their layers' activations.

    Inputs and results of all microbatches at the ends of the layers, and of those that
    alternate the stage's inputs of 2Z - 1 ticks; for zero bubble of Z ticks what its
    weights' gradients are made of.
    """
    one = activations.input_bytes(points) * tokens
    ends = points.microbatches + pipelines.ticks(points)
    inputs = np.where(alternates(points) > 0, 2 * points.stage - 1, 0)
    later = activations.apart_bytes(points) * tokens * fullest(points) * points.stage
    later = np.where(is_schedule(points, "zero_bubble"), later, 0.0)
    return np.where(are_stages(points), one * (ends + inputs) + later, 0.0)


def kept_per_token(points: Points) -> Array:
    """Bytes that a block keeps of one token under the point's remat."""
    least = activations.input_bytes(points)
    fused = activations.fused_bytes(points)
    whole = activations.whole_bytes(points)
    share = np.where(np.isnan(points.kept), 1.0, points.kept)
    # Selective recomputation drops the scores and nothing else (section 5).
    by_name = np.select(
        [points.remat == REMATS.index("full"), points.remat == REMATS.index("none")],
        [least, whole * share],
        fused * share,
    )
    return np.maximum(by_name, least)


def _logits(points: Points, tokens: Array) -> Array:
    elements = tokens * points.vocab / points.tensor
    ours = activations.is_stack(points, "xla")
    # Ours come in chunks, float32, with their gradient; others keep all, in 32 bits
    # and in 16.
    return np.where(ours, 8 * np.minimum(elements, LOGIT_ELEMENTS), 6 * elements)


def _copies(points: Points) -> Array:
    """Gradients at a time: ours of a microbatch are made beside the sum of the others,
    where other software adds them in place."""
    adds = activations.is_stack(points, "xla") & (points.microbatches > 1)
    return np.where(adds & (points.stage == 1), 2.0, 1.0)


def _temporary(points: Points, weights: Weights, kept: Array) -> Array:
    rests, _, _ = shards(points)
    narrow = activations.itemsize(points)
    wider = narrow < points.param_bytes
    gathered = (rests > 1) | wider
    # What is gathered once is kept from one pass to the other; stages hold it as it
    # rests, and a chunk of it cast.
    share = np.where(rests > 1, kept_gathered(points), 0.0)
    kept_whole = share > 0
    # Of a group of layers that stand in one turn all may be gathered at a time.
    group = np.divide(1, share, out=np.zeros_like(share), where=kept_whole)
    passing = np.where(share < 1, np.maximum(group, LAYERS_IN_USE), 0)
    layers = fullest(points) * share + passing
    cast = np.where(wider, narrow, 0.0)
    staged = kept_whole & are_stages(points)
    as_used = np.where(staged, points.param_bytes + cast, narrow)
    in_use = np.where(gathered, layers * weights.in_layer * as_used, 0.0)
    ends = np.where(gathered, weights.ends * narrow, 0.0)
    tokens = tokens_in_use(points)
    made = activations.made_bytes(points)
    # The block at work: what it made again, and the gradients of its widest results.
    inner = activations.feed_forward_width(points) / points.tensor
    working = (made - np.minimum(kept, made) + 2 * narrow * inner) * tokens
    # A gradient of one block, before it is reduced.
    gradient = np.where(rests > 1, weights.in_layer * narrow, 0.0)
    leaving = LAYERS_ON_THE_WAY * kept * points.offload * tokens
    return in_use + ends + working + gradient + leaving
