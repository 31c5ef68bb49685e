"""Attention on an NVIDIA GPU: cuDNN's fused kernel, forward and backward.

Scores exist one block at a time (FlashAttention-2, Dao 2023). The kernel hides the
future and what left a window itself; documents it is told as a mask of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaling_lab.parallel import attention, triton
from scaling_lab.parallel.masks import Mask

Array = jax.Array

#: What JAX calls the kernel's forward pass: to keep it is to keep its normalisers too;
#: and what kernels of our own call what they keep.
RESIDUALS = ("dot_product_attention_fwd_wrapper", attention.RESIDUAL)
#: The widest head of every GPU that has the kernel, and what a width is a multiple of.
WIDEST, MULTIPLE = 128, 8


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Array:
    """`attention.dense` through cuDNN, where it has a kernel for these arrays.

    A map of blocks, a prefix, wider heads and float32 are for `triton`. Where that has
    no form either (decoding, odd lengths) this is `attention.dense`.
    """
    alike = q_BTNH.shape[-1] == v_BSKH.shape[-1]
    if not (alike and suits(q_BTNH, k_BSKH, mask)):
        fits = triton.suits(q_BTNH, k_BSKH, v_BSKH, mask)
        other = triton.attend if fits else attention.dense
        return other(q_BTNH, k_BSKH, v_BSKH, mask)
    window = None if mask.window is None else (mask.window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mask=_documents(mask),
        is_causal=True,
        local_window_size=window,
        implementation="cudnn",
    )


def suits(q_BTNH: Array, k_BSKH: Array, mask: Mask) -> bool:
    """Whether the kernel has a form for these arrays under this mask."""
    width = q_BTNH.shape[-1]
    fits = width <= WIDEST and width % MULTIPLE == 0
    narrow = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    square = q_BTNH.shape[1] == k_BSKH.shape[1]
    plain = mask.causal and mask.blocks is None and mask.k_prefix_BS is None
    return fits and narrow and square and mask.ordered and plain


def _documents(mask: Mask) -> Array | None:
    if mask.q_segments_BT is None or mask.k_segments_BS is None:
        return None
    return mask.q_segments_BT[:, None, :, None] == mask.k_segments_BS[:, None, None, :]
