"""The loss of the next token, never holding all logits in one place.

Each device sees to its own sequences and its own slice of the vocabulary: only three
numbers per token cross the wires (Megatron-LM, Shoeybi et al. 2019, section 3), and
the head's gradient is summed over devices once, not once per chunk. Logits of one
chunk of positions exist at a time; past a size they are made again in the backward
pass instead of being kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from scaling_lab.parallel import equations
from scaling_lab.parallel.verbs import TokenLoss

Array = jax.Array

#: Logits of one device that are kept for the backward pass, in elements.
KEEP_ELEMENTS = 2**26


def chunks(tokens: int, length: int, vocabulary: int, elements: int) -> int:
    """The fewest equal chunks of positions whose logits have at most `elements`.

    Args:
      tokens: of one device, in sequences of `length`. vocabulary: of one device.
    """
    wanted = min(length, max(1, -(-tokens * vocabulary // elements)))
    return next(n for n in range(wanted, length + 1) if length % n == 0)


def token_loss(
    hidden_BTD: Array,
    head_DV: Array,
    targets_BT: Array,
    n: int,
    recompute: bool = False,
    vocabulary_axes: Any = None,
) -> TokenLoss:
    """The loss on one device, in `n` chunks of positions.

    Args:
      recompute: logits are made again going backwards even where they could be kept.
      vocabulary_axes: mesh axes that dim V is divided over, inside `shard_map`.
    """
    batch, length, _ = hidden_BTD.shape
    loss = functools.partial(_chunk, vocabulary_axes)
    if n == 1:
        return loss(head_DV, hidden_BTD, targets_BT)
    if recompute or batch * length * head_DV.shape[1] > KEEP_ELEMENTS:
        loss = jax.checkpoint(loss)
    hidden = rearrange(hidden_BTD, "b (n t) d -> n b t d", n=n)
    targets = rearrange(targets_BT, "b (n t) -> n b t", n=n)

    def body(_, chunk):
        return None, loss(head_DV, *chunk)

    _, parts = jax.lax.scan(body, None, (hidden, targets))
    return jax.tree.map(lambda part: rearrange(part, "n b t -> b (n t)"), parts)


def sharded_token_loss(
    arrays: tuple[Array, Array, Array],
    n: int,
    recompute: bool,
    mesh: Any,
    axes: tuple[Any, Any],
) -> TokenLoss:
    """`token_loss` on every device's own sequences and slice of the vocabulary.

    Args:
      arrays: ``hidden_BTD``, ``head_DV``, ``targets_BT``.
      axes: mesh axes of dim B and of dim V.
    """
    batch, vocabulary_axes = axes
    rows = PartitionSpec(batch, None)

    def local(hidden_BTD: Array, head_DV: Array, targets_BT: Array):
        return tuple(
            token_loss(hidden_BTD, head_DV, targets_BT, n, recompute, vocabulary_axes)
        )

    losses = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            PartitionSpec(batch, None, None),
            PartitionSpec(None, vocabulary_axes),
            rows,
        ),
        out_specs=(rows, rows),
    )(*arrays)
    return TokenLoss(*losses)


def _chunk(
    axes: Any, head_DV: Array, hidden_BTD: Array, targets_BT: Array
) -> TokenLoss:
    logits_BTV = equations.contract("BTD,DV->BTV", (hidden_BTD, head_DV))
    logits_BTV = logits_BTV.astype(jnp.float32)
    own = logits_BTV.shape[-1]
    first = 0 if axes is None else jax.lax.axis_index(axes) * own
    # Picked by comparison, not by gathering: nothing is scattered going backwards.
    ids_V = first + jnp.arange(own)
    hit_BTV = targets_BT[..., None] == ids_V[None, None]
    target_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), -1)
    peak_BT = jax.lax.stop_gradient(jnp.max(logits_BTV, -1))
    if axes is not None:
        peak_BT = jax.lax.pmax(peak_BT, axes)
    total_BT = jnp.sum(jnp.exp(logits_BTV - peak_BT[..., None]), -1)
    if axes is not None:
        total_BT, target_BT = jax.lax.psum((total_BT, target_BT), axes)
    normalizer_BT = jnp.log(total_BT) + peak_BT
    counted_BT = targets_BT >= 0
    return TokenLoss(
        jnp.where(counted_BT, normalizer_BT - target_BT, 0.0),
        jnp.where(counted_BT, normalizer_BT, 0.0),
    )
