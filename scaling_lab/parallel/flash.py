"""Attention block by block, forward and backward, for any kernel that knows both.

Scores exist one block at a time, whatever the length (FlashAttention, Dao et al. 2022,
sections 3.1 and B.2). A `Kernel` does one device's part and speaks of normalisers, so
that `context.ring` can put parts together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.parallel.attention import RESIDUAL
from scaling_lab.parallel.masks import Mask

Array = jax.Array


class Kernel(NamedTuple):
    """One device's attention, told apart into its two passes.

    Attributes:
      forward: ``(q_BTNH, k_BSKH, v_BSKU, mask) -> out_BTNU, log_sum_BNT``; float32, the
        logarithm of the sum of exponentiated scores, `attention.HIDDEN` for a query
        that sees no key here, whose result is zero.
      backward: ``(q_BTNH, k_BSKH, v_BSKU, mask, log_sum_BNT, delta_BNT, d_BTNU) ->
        dq_BTNH, dk_BSKH, dv_BSKU``, float32. `delta` is the sum over U of the result
        times its gradient. It and the logarithm may be of more keys than these.
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    kernel: Kernel, q_BTNH: Array, k_BSKH: Array, v_BSKU: Array, mask: Mask
) -> Array:
    """`attention.dense` through a kernel."""
    return kernel.forward(q_BTNH, k_BSKH, v_BSKU, mask)[0].astype(q_BTNH.dtype)


def _forward(kernel, q_BTNH, k_BSKH, v_BSKU, mask):
    out_BTNU, log_sum_BNT = kernel.forward(q_BTNH, k_BSKH, v_BSKU, mask)
    out_BTNU = checkpoint_name(out_BTNU.astype(q_BTNH.dtype), RESIDUAL)
    log_sum_BNT = checkpoint_name(log_sum_BNT, RESIDUAL)
    return out_BTNU, (q_BTNH, k_BSKH, v_BSKU, mask, out_BTNU, log_sum_BNT)


def _backward(kernel, residuals, d_BTNU):
    *arrays, mask, out_BTNU, log_sum_BNT = residuals
    delta_BNT = delta(out_BTNU, d_BTNU)
    gradients = kernel.backward(*arrays, mask, log_sum_BNT, delta_BNT, d_BTNU)
    found = (g.astype(a.dtype) for g, a in zip(gradients, arrays, strict=True))
    return (*found, None)


attend.defvjp(_forward, _backward)


def delta(out_BTNU: Array, d_BTNU: Array) -> Array:
    """What softmax's gradient subtracts from every score's, in float32."""
    wide_BTNU = out_BTNU.astype(jnp.float32) * d_BTNU.astype(jnp.float32)
    return rearrange(jnp.sum(wide_BTNU, -1), "b t n -> b n t")


def unbroken(length: int, own: int, mask: Mask) -> int:
    """How many positions in turn stand without a gap in their places.

    Args:
      own: queries of the device; of a part of a row half of them do, and as many of the
        keys, however many are gathered.
    """
    return own // 2 if mask.row is not None else length


def block(length: int, own: int, mask: Mask, most: int, multiple: int = 1) -> int:
    """The widest block that divides a length and has no gap in its places.

    Args:
      own: queries of the device (`unbroken`).
      most: at most so wide, and no wider than a block of the mask's map. multiple: of
        this. Where there is none, 0.
    """
    most = most if mask.blocks is None else min(most, mask.blocks.size)
    whole = unbroken(length, own, mask)
    widths = range(multiple, min(whole, most) + 1, multiple)
    return max((n for n in widths if whole % n == 0), default=0)
