"""The kernels of TPUs against attention written out, run here by interpretation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab.parallel import attention, cudnn, splash, stack
from scaling_lab.parallel.masks import Mask


def arrays(length=256, heads=4, kv_heads=2, width=64, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def mask(length=256, window=None, documents=True, ordered=True):
    positions = jnp.broadcast_to(jnp.arange(length), (2, length))
    cuts = jnp.array([[length // 3], [length // 2]])
    segments = (positions >= cuts).astype(jnp.int32) if documents else None
    return Mask(
        positions, positions, segments, segments, window=window, ordered=ordered
    )


def value_and_gradients(attend, arrays, mask):
    *inputs, weights = arrays

    def total(q, k, v):
        return jnp.sum(attend(q, k, v, mask) * weights)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("documents", [True, False])
def test_splash_is_attention(window, documents):
    """Forward and backward, grouped heads, documents and windows."""

    def interpreted(*arguments):
        return splash.attend(*arguments, interpret=True)

    inputs, seen = arrays(), mask(window=window, documents=documents)
    ours = value_and_gradients(interpreted, inputs, seen)
    theirs = value_and_gradients(attention.dense, inputs, seen)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
        ours,
        theirs,
    )


@pytest.mark.parametrize("kernel", [splash, cudnn])
def test_what_a_kernel_cannot_do_is_written_out(kernel):
    q, k, v, _ = arrays(length=100)  # no multiple of the lanes; float32 for cuDNN
    seen = mask(length=100)
    assert not kernel.suits(q, k, seen)
    np.testing.assert_array_equal(
        kernel.attend(q, k, v, seen), attention.dense(q, k, v, seen)
    )


@pytest.mark.parametrize("kernel", [splash, cudnn])
def test_decoding_is_written_out(kernel):
    q, k, _, _ = arrays(dtype=jnp.bfloat16)
    assert kernel.suits(q, k, mask())
    assert not kernel.suits(q, k, mask(ordered=False))
    assert not kernel.suits(q[:, :128], k, mask())


def test_attention_is_kept_by_the_name_of_its_residual():
    kept = stack.with_residual("save:attention/attend,ffn/up", "residual")
    assert kept == "save:ffn/up,residual"
    dropped = stack.with_residual("recompute:attention/attend", "residual")
    assert dropped == "recompute:attention/attend,residual"
    for policy in ("none", "full", "save:ffn/up"):
        assert stack.with_residual(policy, "residual") == policy
    assert stack.with_residual("save:attention/attend", "") == "save:attention/attend"
