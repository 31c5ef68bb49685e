"""The loss of the next token, never holding all logits in one place.

Each device sees to its own sequences and its own slice of the vocabulary: only three
numbers per token cross the wires (Megatron-LM, Shoeybi et al. 2019, section 3). On a
device the vocabulary is cut once more, into chunks whose logits exist one after the
other. A chunk's part of the head's gradient is then whole: it is summed over devices
and divided at once, so that the full gradient of a large head never exists, and nothing
is added up in a narrow dtype. Past a size, logits are made again going backwards.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling_lab.parallel import equations
from scaling_lab.parallel.equations import wide_product
from scaling_lab.parallel.verbs import TokenLoss

Array = jax.Array

#: Logits of one device that are kept for the backward pass, in elements.
KEEP_ELEMENTS = 2**26
#: A chunk's columns are a multiple of this where they can be: an accelerator's lanes.
LANES = 128


class Shards(NamedTuple):
    """Where the arrays of the loss are; without a mesh all are whole.

    Attributes:
      mesh: of all arrays.
      rows: mesh axes of B and of T.
      vocabulary: mesh axes of dim V.
      width: mesh axes that the head's D rests divided over; gathered for use.
      reduced: mesh axes that D of the head's gradient is divided over, among `rows`.
      dtype: that this gradient is summed in; ``None`` is that of the head.
    """

    mesh: Any = None
    rows: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    vocabulary: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    dtype: str | None = None


#: Of one device.
WHOLE = Shards()


def columns(tokens: int, vocabulary: int, elements: int) -> int:
    """The vocabulary of one chunk whose logits have about `elements`.

    Args:
      tokens: of one device. vocabulary: of one device.
    """
    chunks = -(-tokens * vocabulary // elements)
    width = -(-vocabulary // chunks)
    return min(vocabulary, -(-width // LANES) * LANES)


def token_loss(
    hidden_BTD: Array,
    head_DV: Array,
    targets_BT: Array,
    chunk: int,
    shards: Shards = WHOLE,
    *,
    keep: bool = True,
) -> TokenLoss:
    """The loss of every token, in float32.

    Args:
      chunk: columns of one device whose logits exist at a time; the last may be fewer.
      keep: logits are kept for the backward pass, not made again.
    """
    return _token_loss((chunk, shards, keep), hidden_BTD, head_DV, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(plan: Any, hidden_BTD: Array, head_DV: Array, targets_BT: Array):
    chunk, shards, _ = plan

    def local(hidden_BTD, head_DV, targets_BT):
        head_DV = _gathered(head_DV, shards)
        return _losses(hidden_BTD, head_DV, targets_BT, chunk, shards)[0]

    rows, head, _, _ = _specs(shards)
    return _spread(local, shards, (rows, head, rows), rows)(
        hidden_BTD, head_DV, targets_BT
    )


def _forward(plan, hidden_BTD, head_DV, targets_BT):
    chunk, shards, keep = plan

    def local(hidden_BTD, head_DV, targets_BT):
        whole_DV = _gathered(head_DV, shards)
        loss, logits = _losses(hidden_BTD, whole_DV, targets_BT, chunk, shards)
        return loss, whole_DV, logits if keep else None

    rows, head, columns, logits = _specs(shards)
    out_specs = (rows, columns, logits if keep else None)
    loss, whole_DV, kept = _spread(local, shards, (rows, head, rows), out_specs)(
        hidden_BTD, head_DV, targets_BT
    )
    return loss, (hidden_BTD, whole_DV, targets_BT, loss.log_normalizer_BT, kept)


def _backward(plan, residuals, cotangent):
    _, shards, keep = plan
    rows, _, columns, logits = _specs(shards)
    divided = PartitionSpec(shards.reduced or None, shards.vocabulary or None)
    held = (rows, columns, rows, rows, logits if keep else None)
    local = functools.partial(_gradients, plan)
    spread = _spread(local, shards, (held, rows), (rows, divided))
    dhidden_BTD, dhead_DV = spread(residuals, cotangent)
    return dhidden_BTD, dhead_DV, None


_token_loss.defvjp(_forward, _backward)


def _losses(
    hidden_BTD: Array, head_DV: Array, targets_BT: Array, chunk: int, shards: Shards
) -> tuple[TokenLoss, Array]:
    """The loss of this device's tokens, and the logits of every chunk."""

    def add(carry: Any, step: Any) -> Any:
        peak_BT, total_BT, target_BT = carry
        start, done = step
        part = _part(head_DV, start, done, chunk)
        logits_BTv = _logits(hidden_BTD, part)
        hit_BTv = _hit(targets_BT, part, first)
        target_BT += jnp.sum(jnp.where(hit_BTv, logits_BTv, 0.0), -1)
        higher_BT = jnp.maximum(peak_BT, jnp.max(logits_BTv, -1))
        own_BT = jnp.sum(jnp.exp(logits_BTv - higher_BT[..., None]), -1)
        total_BT = total_BT * jnp.exp(peak_BT - higher_BT) + own_BT
        return (higher_BT, total_BT, target_BT), logits_BTv

    first = _first(head_DV, shards)
    zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
    carry = (zeros_BT - jnp.inf, zeros_BT, zeros_BT)
    (peak_BT, total_BT, target_BT), logits = jax.lax.scan(
        add, carry, _steps(head_DV, chunk)
    )
    if shards.vocabulary:
        highest_BT = jax.lax.pmax(peak_BT, shards.vocabulary)
        total_BT *= jnp.exp(peak_BT - highest_BT)
        peak_BT = highest_BT
        total_BT, target_BT = jax.lax.psum((total_BT, target_BT), shards.vocabulary)
    normalizer_BT = jnp.log(total_BT) + peak_BT
    counted_BT = targets_BT >= 0
    loss = TokenLoss(
        jnp.where(counted_BT, normalizer_BT - target_BT, 0.0),
        jnp.where(counted_BT, normalizer_BT, 0.0),
    )
    return loss, logits


def _gradients(plan: Any, residuals: Any, cotangent: Any) -> tuple[Array, Array]:
    """Gradients of the hidden state and of the head, one chunk after the other."""
    chunk, shards, keep = plan
    hidden_BTD, head_DV, targets_BT, normalizer_BT, logits = residuals
    counted_BT = targets_BT >= 0
    d_nll_BT, d_z_BT = (jnp.where(counted_BT, d_BT, 0.0) for d_BT in cotangent)

    def add(carry: Any, step: Any) -> Any:
        dhidden_BTD, dhead_dV = carry
        start, done, *kept = step
        part = _part(head_DV, start, done, chunk)
        logits_BTv = kept[0] if keep else _logits(hidden_BTD, part)
        share_BTv = jnp.exp(logits_BTv - normalizer_BT[..., None])
        hit_BTv = _hit(targets_BT, part, first)
        d_BTv = share_BTv * (d_nll_BT + d_z_BT)[..., None]
        d_BTv -= jnp.where(hit_BTv, d_nll_BT[..., None], 0.0)
        d_BTv = d_BTv.astype(hidden_BTD.dtype)
        dhidden_BTD += wide_product("BTV,DV->BTD", d_BTv, part.head_Dv)
        own_Dv = equations.contract(
            "BTD,BTV->DV", (hidden_BTD, d_BTv), dtype=shards.dtype
        )
        own_dv = _reduced(own_Dv, shards).astype(head_DV.dtype)
        own_dv += jax.lax.dynamic_slice_in_dim(dhead_dV, part.start, chunk, 1)
        dhead_dV = jax.lax.dynamic_update_slice_in_dim(dhead_dV, own_dv, part.start, 1)
        return (dhidden_BTD, dhead_dV), None

    first = _first(head_DV, shards)
    rows = head_DV.shape[0] // _parts(shards, shards.reduced)
    carry = (
        jnp.zeros(hidden_BTD.shape, jnp.float32),
        jnp.zeros((rows, head_DV.shape[1]), head_DV.dtype),
    )
    steps = _steps(head_DV, chunk) + ((logits,) if keep else ())
    (dhidden_BTD, dhead_dV), _ = jax.lax.scan(add, carry, steps)
    if shards.vocabulary:
        dhidden_BTD = jax.lax.psum(dhidden_BTD, shards.vocabulary)
    return dhidden_BTD.astype(hidden_BTD.dtype), dhead_dV


class _Part(NamedTuple):
    """A chunk of the head: its columns, where they start, and which are new."""

    head_Dv: Array
    start: Array
    new_v: Array


def _steps(head_DV: Array, chunk: int) -> tuple[Array, Array]:
    """Where each chunk starts, and how many columns are done before it.

    All are equally wide, so the last may begin before the one in front of it ends.
    """
    done = jnp.arange(0, head_DV.shape[1], chunk)
    return jnp.minimum(done, head_DV.shape[1] - chunk), done


def _part(head_DV: Array, start: Array, done: Array, chunk: int) -> _Part:
    head_Dv = jax.lax.dynamic_slice_in_dim(head_DV, start, chunk, 1)
    return _Part(head_Dv, start, start + jnp.arange(chunk) >= done)


def _logits(hidden_BTD: Array, part: _Part) -> Array:
    logits_BTv = wide_product("BTD,DV->BTV", hidden_BTD, part.head_Dv)
    return jnp.where(part.new_v[None, None], logits_BTv, -jnp.inf)


def _hit(targets_BT: Array, part: _Part, first: Any) -> Array:
    # Picked by comparison, not by gathering: nothing is scattered going backwards.
    ids_v = first + part.start + jnp.arange(part.new_v.size)
    return (targets_BT[..., None] == ids_v[None, None]) & part.new_v[None, None]


def _first(head_DV: Array, shards: Shards) -> Any:
    """The vocabulary's first word on this device."""
    if not shards.vocabulary:
        return 0
    return jax.lax.axis_index(shards.vocabulary) * head_DV.shape[1]


def _parts(shards: Shards, axes: tuple[str, ...]) -> int:
    return math.prod(shards.mesh.shape[axis] for axis in axes)


def _gathered(head_DV: Array, shards: Shards) -> Array:
    if not shards.width:
        return head_DV
    return jax.lax.all_gather(head_DV, shards.width, axis=0, tiled=True)


def _reduced(dhead_DV: Array, shards: Shards) -> Array:
    """Summed over the devices with other sequences; each keeps its rows of D."""
    if shards.reduced:
        dhead_DV = jax.lax.psum_scatter(
            dhead_DV, shards.reduced, scatter_dimension=0, tiled=True
        )
    over = (*shards.rows[0], *shards.rows[1])
    summed = tuple(axis for axis in over if axis not in shards.reduced)
    return jax.lax.psum(dhead_DV, summed) if summed else dhead_DV


def _specs(shards: Shards) -> tuple[PartitionSpec, ...]:
    """Of rows of tokens, the head as it rests, the head in use, chunks of logits."""
    rows = tuple(axes or None for axes in shards.rows)
    vocabulary = shards.vocabulary or None
    return (
        PartitionSpec(*rows),
        PartitionSpec(shards.width or None, vocabulary),
        PartitionSpec(None, vocabulary),
        PartitionSpec(None, *rows, vocabulary),
    )


def _spread(local: Any, shards: Shards, in_specs: Any, out_specs: Any) -> Any:
    if shards.mesh is None:
        return local
    return jax.shard_map(
        local,
        mesh=shards.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )
