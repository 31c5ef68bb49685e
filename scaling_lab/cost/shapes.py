"""Sizes that follow from a point: weights, FLOPs and shards, in columns."""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.cost.points import REMATS, SCHEDULES, Points

Column = np.ndarray


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Derived columns that several prices share.

    Attributes:
      tokens: of one microbatch on one device, after ``data``, ``fsdp``, ``context``.
      microbatches: of one step on one replica.
      gates: matrices that read the block's input in a feed-forward: 2 or 1.
      attention_params: weights of one block's attention.
      dense_params: weights of all blocks that every token meets.
      expert_params: weights of all routed experts of all blocks.
      embedding_params: embedding and head.
      moe_layers: blocks with experts.
      dense_blocks: blocks without.
      score_tokens: keys an average query sees, of the layers' mix of windows.
      recompute: share of a block's forward FLOPs done again.
    """

    tokens: Column
    microbatches: Column
    gates: Column
    attention_params: Column
    dense_params: Column
    expert_params: Column
    embedding_params: Column
    moe_layers: Column
    dense_blocks: Column
    score_tokens: Column
    recompute: Column


def shapes_of(p: Points) -> Shapes:
    """The derived columns of some points."""
    wide = p.n_heads * p.head_dim
    formula = p.d_model * (2 * wide + 2 * p.kv_heads * p.head_dim)
    attention = np.where(np.isnan(p.attention_params), formula, p.attention_params)
    gates = 1 + p.gated
    moe = np.where(p.n_experts > 0, p.layers - p.dense_layers, 0.0)
    dense_blocks = p.layers - moe
    matrices = (1 + gates) * p.d_model
    shared = moe * (matrices * p.shared_d_ff + p.d_model * p.n_experts)
    tables = np.where(p.tied > 0, 1.0, 2.0) * p.vocab * p.d_model
    causal = p.seq_len / 2
    local = np.where(p.window > 0, np.minimum(p.window, causal), causal)
    return Shapes(
        tokens=p.microbatch_seqs * p.seq_len / p.context,
        microbatches=p.microbatches,
        gates=gates,
        attention_params=attention,
        dense_params=p.layers * attention + dense_blocks * matrices * p.d_ff + shared,
        expert_params=moe * p.n_experts * matrices * p.expert_d_ff,
        embedding_params=tables,
        moe_layers=moe,
        dense_blocks=dense_blocks,
        score_tokens=causal + p.window_share * (local - causal),
        recompute=p.recompute + alternates(p),
    )


def parameter_count(p: Points) -> Column:
    """Parameters by the dims alone (norms and biases left out)."""
    s = shapes_of(p)
    return s.dense_params + s.expert_params + s.embedding_params


def model_flops(p: Points) -> Column:
    """Causal model FLOPs of one step: 6 per multiplied active weight, and attention.

    The convention is `flops.per_token`'s ``causal_half_attention_without_embedding``.
    """
    s = shapes_of(p)
    routed = np.where(
        p.n_experts > 0, s.expert_params * p.top_k / np.maximum(p.n_experts, 1), 0.0
    )
    weights = s.dense_params + routed + p.vocab * p.d_model
    scores = 12 * p.layers * p.n_heads * p.head_dim * s.score_tokens
    return p.global_batch_tokens * (6 * weights + scores)


def is_schedule(p: Points, name: str) -> Column:
    """Where the schedule is the one of that name."""
    return p.schedule == SCHEDULES.index(name)


def alternates(p: Points) -> Column:
    """1 where our stages go forward and backward in turn, else 0."""
    turns = is_schedule(p, "1f1b") | is_schedule(p, "zero_bubble")
    return 1.0 * (are_stages(p) & turns)


def are_stages(p: Points) -> Column:
    """Where layers are in stages of ours."""
    return (p.lockstep > 0) & (p.stage > 1)


def says_sums(p: Points) -> Column:
    """Where a run of ours says in what gradients are summed over devices."""
    return (p.lockstep > 0) & ~np.isnan(p.reduced_bytes)


def kept_gathered(p: Points) -> Column:
    """The share of layers whose gathered weights are kept for the backward pass.

    Stages that have experts keep none.
    """
    return np.where(
        are_stages(p) & (p.n_experts > 0), 0.0, np.clip(2 - p.gathers, 0, 1)
    )


def gathers(p: Points) -> Column:
    """How often a microbatch gathers what ``fsdp`` divides; stages may for all once."""
    kept = kept_gathered(p)
    again = np.where(kept > 0, 2 - kept, np.maximum(p.gathers, 2.0)) + alternates(p)
    return np.where((kept > 0) & are_stages(p), 0.0, again)


def is_remat(p: Points, name: str) -> Column:
    """Where the remat policy is the one of that name."""
    return p.remat == REMATS.index(name)
