"""Attention over a divided sequence: gathered keys, a ring of them, or divided heads.

Under a causal mask the devices with the last positions would do most of the work. So
the data's order is *zigzag*: of 2C chunks of a row, shard i of C holds the i-th from
the front and the i-th from the back, and every shard sees as many pairs (Llama 3,
Grattafiori et al. 2024, section 3.3.2; Brandon et al. 2023, Striped Attention, for the
problem). The order is decided once, where batches are put on devices: positions,
documents and targets travel with their tokens, so nothing else has to know.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.parallel import flash, ulysses
from scaling_lab.parallel.attention import RESIDUAL, Attend
from scaling_lab.parallel.masks import Mask

Array = jax.Array


class Kernels(NamedTuple):
    """The attention of one device.

    Attributes:
      whole: over whole rows. parts: over parts of them, in its two passes.
    """

    whole: Attend
    parts: flash.Kernel


def zigzag(length: int, shards: int) -> np.ndarray:
    """The place in its row of every token, in the order in which shards hold them.

    Raises:
      ValueError: `length` does not divide into two chunks for each shard.
    """
    if length % (2 * shards):
        raise ValueError(
            f"context={shards} cuts a row into {2 * shards} chunks, and {length} "
            f"positions do not divide into them; use a multiple of {2 * shards}"
        )
    chunks = np.arange(length).reshape(2 * shards, -1)
    both = np.stack([chunks[:shards], chunks[: shards - 1 : -1]], 1)
    return both.reshape(-1)


def placed(mask: Mask, own: int, axis: Any) -> Mask:
    """The mask of one device's queries and keys, which says where in the row they are.

    Args:
      own: positions that the device holds. axis: of the mesh, divided by zigzag.
    """
    shards, index, half = jax.lax.axis_size(axis), jax.lax.axis_index(axis), own // 2
    chunk_T = jnp.repeat(jnp.stack([index, 2 * shards - 1 - index]), half)
    places_BT = (chunk_T * half + jnp.tile(jnp.arange(half), 2))[None]
    return dataclasses.replace(
        mask,
        q_places_BT=places_BT,
        k_places_BS=places_BT,
        ordered=False,
        row=own * shards,
    )


def gathered(
    kernel: flash.Kernel, axis: Any, q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask
) -> Array:
    """Every device its own queries on the keys of all, gathered before they are used.

    Going backwards each device's keys get their gradient by one reduce-scatter.
    """
    mask = placed(mask, q_BTNH.shape[1], axis)
    gather = functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
    keys = {name: gather(array) for name, array in _of_keys(mask).items()}
    mask = dataclasses.replace(mask, **keys)
    return flash.attend(kernel, q_BTNH, gather(k_BSKH), gather(v_BSKU), mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ring(
    kernel: flash.Kernel, axis: Any, q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask
) -> Array:
    """Every device its own queries, while the keys go round (Liu et al. 2023).

    No device ever holds more keys than two shards': those it works on and those that
    are on their way to it meanwhile.
    """
    return _ring(kernel, axis, q_BTNH, k_BSKH, v_BSKU, mask)[0].astype(q_BTNH.dtype)


def _ring(kernel, axis, q_BTNH, k_BSKH, v_BSKU, mask) -> tuple[Array, Array]:
    mask = placed(mask, q_BTNH.shape[1], axis)

    def see(held: Any, found: Any) -> Any:
        k_BSKH, v_BSKU, keys = held
        part = kernel.forward(q_BTNH, k_BSKH, v_BSKU, dataclasses.replace(mask, **keys))
        return part if found is None else _merged(found, part)

    def step(carry: Any, _: Any) -> Any:
        held, found = carry
        coming = _next(held, axis)  # asked for before the work, so that it overlaps
        return (coming, see(held, found)), None

    held = (k_BSKH, v_BSKU, _of_keys(mask))
    coming, found = _next(held, axis), see(held, None)
    rounds = jax.lax.axis_size(axis) - 2
    if rounds > 0:
        (coming, found), _ = jax.lax.scan(step, (coming, found), length=rounds)
    return see(coming, found)


def _forward(kernel, axis, q_BTNH, k_BSKH, v_BSKU, mask):
    found = _ring(kernel, axis, q_BTNH, k_BSKH, v_BSKU, mask)
    out_BTNU = checkpoint_name(found[0].astype(q_BTNH.dtype), RESIDUAL)
    log_sum_BNT = checkpoint_name(found[1], RESIDUAL)
    return out_BTNU, (q_BTNH, k_BSKH, v_BSKU, mask, out_BTNU, log_sum_BNT)


def _backward(kernel, axis, residuals, d_BTNU):
    q_BTNH, k_BSKH, v_BSKU, mask, out_BTNU, log_sum_BNT = residuals
    mask = placed(mask, q_BTNH.shape[1], axis)
    delta_BNT = flash.delta(out_BTNU, d_BTNU)

    def see(held: Any, found: Any) -> Any:
        k_BSKH, v_BSKU, keys = held
        own = kernel.backward(
            q_BTNH,
            k_BSKH,
            v_BSKU,
            dataclasses.replace(mask, **keys),
            log_sum_BNT,
            delta_BNT,
            d_BTNU,
        )
        dq, dk, dv = jax.tree.map(jnp.add, found, own)
        # What was found goes on with its keys, and is home when they have gone round.
        return dq, *_next((dk, dv), axis)

    def step(carry: Any, _: Any) -> Any:
        held, found = carry
        coming = _next(held, axis)
        return (coming, see(held, found)), None

    arrays = (q_BTNH, k_BSKH, v_BSKU)
    found = tuple(jnp.zeros(a.shape, jnp.float32) for a in arrays)
    held = (k_BSKH, v_BSKU, _of_keys(mask))
    rounds = jax.lax.axis_size(axis) - 1
    (held, found), _ = jax.lax.scan(step, (held, found), length=rounds)
    found = zip(see(held, found), arrays, strict=True)
    return (*(gradient.astype(array.dtype) for gradient, array in found), None)


ring.defvjp(_forward, _backward)

#: What a layout may bind `attend` to over a divided sequence, with the kernel it takes.
MECHANISMS = {
    "gather": ("parts", gathered),
    "ring": ("parts", ring),
    "ulysses": ("whole", ulysses.attend),
}


def spread(kind: str, kernels: Kernels, axis: Any) -> Attend:
    """One device's part of attention over a sequence divided over a mesh axis.

    Args:
      kind: a key of `MECHANISMS`.
    """
    taken, mechanism = MECHANISMS[kind]
    return functools.partial(mechanism, getattr(kernels, taken), axis)


def residual(kind: str, whole: str) -> str:
    """`checkpoint_name` by which attention keeps what it needs.

    Args:
      whole: the same of a kernel over whole rows.
    """
    return whole if MECHANISMS[kind][0] == "whole" else RESIDUAL


def _of_keys(mask: Mask) -> dict[str, Array]:
    """The mask's arrays that belong to keys."""
    return {
        field.name: value
        for field in dataclasses.fields(mask)
        for value in [getattr(mask, field.name)]
        if field.name.startswith("k_") and value is not None
    }


def _next(tree: Any, axis: Any) -> Any:
    """What the device before this one holds."""
    shards = jax.lax.axis_size(axis)
    ring = [(i, (i + 1) % shards) for i in range(shards)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, axis, ring), tree)


def _merged(one: Any, other: Any) -> tuple[Array, Array]:
    """The attention over the keys of both parts."""
    (out_BTNU, log_sum_BNT), (more_BTNU, more_sum_BNT) = one, other
    total_BNT = jnp.logaddexp(log_sum_BNT, more_sum_BNT)
    shares = (jnp.exp(part - total_BNT) for part in (log_sum_BNT, more_sum_BNT))
    first_BTN1, second_BTN1 = (rearrange(s, "b n t -> b t n 1") for s in shares)
    return out_BTNU * first_BTN1 + more_BTNU * second_BTN1, total_BNT
