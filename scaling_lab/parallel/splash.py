"""Attention on a TPU: JAX's splash kernel, which skips the blocks its mask hides.

Grouped key-value heads are read as they are stored, never repeated. Scores exist one
block at a time in the chip's fast memory (FlashAttention, Dao et al. 2022, section
3.1; the backward pass, appendix B.2).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from scaling_lab.parallel import attention, mosaic
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: What a block's sides must be multiples of: the chip's vector lanes.
LANES = 128
#: The widest block whose tiles fit the fast memory of every TPU, forward and backward.
BLOCK = 1024


def attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, *, interpret: bool = False
) -> Array:
    """`attention.dense` through the splash kernel, forward and backward.

    A map of blocks, a prefix and what is not causal are for `mosaic`. Where keys do not
    stand in the order of queries (decoding), or a length is no multiple of `LANES`,
    neither has a form and this is `attention.dense`.

    Args:
      interpret: run the kernel's program without a TPU, slowly and exactly.
    """
    if not suits(q_BTNH, k_BSKH, mask):
        if mosaic.suits(q_BTNH, k_BSKH, mask):
            return mosaic.attend(q_BTNH, k_BSKH, v_BSKH, mask)
        out_BTNH = attention.dense(q_BTNH, k_BSKH, v_BSKH, mask)
        return checkpoint_name(out_BTNH, attention.RESIDUAL)
    heads, length, width = q_BTNH.shape[2], q_BTNH.shape[1], q_BTNH.shape[3]
    kernel = splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([_static(mask, length)] * heads),
        block_sizes=_blocks(length),
        residual_checkpoint_name=attention.RESIDUAL,
        interpret=interpret,
    )
    arrays = (q_BTNH * width**-0.5, k_BSKH, v_BSKH)
    q_BNTH, k_BKSH, v_BKSH = (rearrange(a, "b t n h -> b n t h") for a in arrays)
    o_BNTH: Any = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, _documents(mask))
    return rearrange(o_BNTH.astype(q_BTNH.dtype), "b n t h -> b t n h")


def suits(q_BTNH: Array, k_BSKH: Array, mask: Mask) -> bool:
    """Whether the kernel has a form for these shapes under this mask."""
    queries, keys = q_BTNH.shape[1], k_BSKH.shape[1]
    plain = mask.causal and mask.blocks is None and mask.k_prefix_BS is None
    return plain and mask.ordered and queries == keys and queries % LANES == 0


def _static(mask: Mask, length: int) -> splash.Mask:
    """What the mask hides whatever the data: the future, and what left the window."""
    if mask.window is None:
        return splash.CausalMask((length, length))
    return splash.LocalMask((length, length), (mask.window - 1, 0), 0)


def _documents(mask: Mask) -> splash.SegmentIds | None:
    if mask.q_segments_BT is None or mask.k_segments_BS is None:
        return None
    return splash.SegmentIds(mask.q_segments_BT, mask.k_segments_BS)


@functools.cache
def _blocks(length: int) -> splash.BlockSizes:
    side = max(
        n for n in range(LANES, min(length, BLOCK) + 1, LANES) if length % n == 0
    )
    return splash.BlockSizes(
        block_q=side,
        block_kv=side,
        block_kv_compute=min(side, 512),
        block_q_dkv=side,
        block_kv_dkv=side,
        block_kv_dkv_compute=min(side, 512),
        block_q_dq=side,
        block_kv_dq=side,
    )
