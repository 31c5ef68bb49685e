"""The kernels of TPUs against attention written out, run here by interpretation."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab.parallel import attention, chunked, cudnn, keeping, splash, stacked
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
    kept = keeping.with_residual("save:attention/attend,ffn/up", "residual")
    assert kept == "save:ffn/up,residual"
    dropped = keeping.with_residual("recompute:attention/attend", "residual")
    assert dropped == "recompute:attention/attend,residual"
    for policy in ("none", "full", "save:ffn/up"):
        assert keeping.with_residual(policy, "residual") == policy
    assert keeping.with_residual("save:attention/attend", "") == "save:attention/attend"


def test_stacked_sequences_are_more_of_them():
    """Two stages with documents of their own, and two copies of each."""
    attend = stacked.as_sequences(attention.dense)
    masks = [mask(), mask(documents=False)]
    masks[1] = dataclasses.replace(
        masks[1],
        q_segments_BT=jnp.zeros((2, 256), jnp.int32),
        k_segments_BS=jnp.zeros((2, 256), jnp.int32),
    )
    given = [jnp.array([[a, 2 * a], [3 * a, a + 1]]) for a in arrays()]

    def one(inputs, mask):
        return value_and_gradients(attend, inputs, mask)

    every = jax.vmap(jax.vmap(one, (0, None)))
    found = every(given, jax.tree.map(lambda *a: jnp.stack(a), *masks))
    for stage, copy in itertools.product(range(2), range(2)):
        own = [a[stage, copy] for a in given]
        wanted = value_and_gradients(attention.dense, own, masks[stage])
        same([a[stage, copy] for a in jax.tree.leaves(found)], jax.tree.leaves(wanted))


def test_a_policy_keeps_what_a_stacked_kernel_names():
    """Kept, a kernel's forward pass stands once in the program."""
    given = jax.tree.map(lambda *a: jnp.stack(a), *[(arrays(), mask())] * 2)

    attend = stacked.as_sequences(chunked.attend)

    def products(policy):
        policy = keeping.with_residual(policy, attention.RESIDUAL)
        kept = keeping.remat(attend, policy, regather=False)

        def one(inputs, mask):
            *inputs, weights = inputs
            return jax.grad(lambda *i: jnp.sum(kept(*i, mask) ** 2 * weights))(*inputs)

        return jax.jit(jax.vmap(one)).lower(*given).compile().as_text().count(" dot(")

    assert products("save:attention/attend") == products("full") - 2


def same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_stages_reach_the_gpus_kernel_with_documents_of_their_own(monkeypatch):
    """Traced, not run: JAX's own rule asks for a mask of every head and refuses."""
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91_000)
    twice = jax.tree.map(
        lambda *a: jnp.stack(a), *[(arrays(dtype=jnp.bfloat16), mask())] * 2
    )

    def traced(attend):
        one = functools.partial(value_and_gradients, attend)
        return str(jax.make_jaxpr(jax.vmap(one))(*twice))

    kernel = "dot_product_attention_bwd"
    assert kernel in traced(stacked.as_sequences(cudnn.attend, cudnn.RESIDUALS))
    with pytest.raises(TypeError, match="reshape"):
        traced(cudnn.attend)
