"""Every kernel and every way over divided sequences against attention written out."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as some
from jax.sharding import AxisType, Mesh, PartitionSpec

from scaling_lab import layouts
from scaling_lab.parallel import (
    attention,
    chunked,
    context,
    flash,
    masks,
    mosaic,
    splash,
    triton,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")

LENGTH, BLOCK = 128, 16
#: Documents of two rows; none ends where a shard or a block does.
DOCUMENTS = ((50, 78), (101, 3, 24))


def interpreted(kernel):
    """A kernel of our own, on the machine that is here."""
    return flash.Kernel(
        functools.partial(kernel.forward, interpret=True),
        functools.partial(kernel.backward, interpret=True),
    )


def small_blocks(monkeypatch, k_block=128):
    """Several blocks of every row that the tests below have."""
    monkeypatch.setattr(mosaic, "Q_BLOCK", 128)
    monkeypatch.setattr(mosaic, "K_BLOCK", k_block)
    monkeypatch.setattr(triton, "FORWARD", (64, 32))
    monkeypatch.setattr(triton, "BACKWARD", (32, 64))


def packed(documents=DOCUMENTS):
    positions = [np.concatenate([np.arange(n) for n in row]) for row in documents]
    segments = [np.repeat(np.arange(len(row)), row) for row in documents]
    return {
        "positions_BT": jnp.asarray(np.stack(positions)),
        "segments_BT": jnp.asarray(np.stack(segments)),
    }


def some_blocks(size, length=LENGTH, seed=0):
    count = length // size
    seen = np.random.default_rng(seed).random((count, count)) > 0.5
    return masks.Blocks.of(size, seen | np.eye(count, dtype=bool))


def mask_of(kind, batch, size=BLOCK):
    causal = masks.causal_mask(batch)
    early = batch["positions_BT"] < 10
    length = early.shape[1]
    made = {
        "causal": lambda: causal,
        "full": lambda: dataclasses.replace(causal, causal=False),
        "window": lambda: masks.causal_mask(batch, window=20),
        "wide window": lambda: masks.causal_mask(batch, window=70),
        "chunks": lambda: masks.chunked(causal, 24),
        "prefix": lambda: dataclasses.replace(causal, k_prefix_BS=early),
        "blocks": lambda: masks.causal_mask(batch, blocks=some_blocks(size, length)),
    }
    return made[kind]()


KINDS = ("causal", "full", "window", "wide window", "chunks", "prefix", "blocks")


def arrays(length=LENGTH, heads=4, kv_heads=2, width=8, value=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((heads, width), (kv_heads, width), (kv_heads, value), (heads, value))
    return [
        jax.random.normal(key, (2, length, *shape), dtype)
        for key, shape in zip(keys, shapes, strict=True)
    ]


def result_and_gradients(attend, mask, q, k, v, d):
    out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
    return out, *back(d)


def same(found, wanted, bound):
    for left, right in zip(found, wanted, strict=True):
        error = np.linalg.norm(np.asarray(left, np.float32) - right)
        assert error <= bound * np.linalg.norm(np.asarray(right, np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attend", [attention.blockwise, chunked.attend])
def test_a_kernel_is_attention(attend, kind, monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", BLOCK)
    if attend is attention.blockwise:
        attend = functools.partial(attend, block=BLOCK)
    given = arrays(value=6)
    mask = mask_of(kind, packed())
    wanted = result_and_gradients(attention.dense, mask, *given)
    same(result_and_gradients(attend, mask, *given), wanted, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_for_tpus_is_attention(kind, monkeypatch):
    monkeypatch.setattr(mosaic, "Q_BLOCK", 256)
    monkeypatch.setattr(mosaic, "K_BLOCK", 128)
    q, k, v, d = given = arrays(length=512, width=64, value=32)
    mask = mask_of(kind, packed(((200, 312), (401, 11, 100))), 128)
    assert mosaic.suits(q, k, mask)
    attend = functools.partial(flash.attend, interpreted(mosaic))
    wanted = result_and_gradients(attention.dense, mask, q, k, v, d)
    same(result_and_gradients(attend, mask, *given), wanted, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "value"), [(64, 32), (24, 16)])
def test_the_kernel_for_gpus_is_attention(width, value, kind, monkeypatch):
    small_blocks(monkeypatch)
    q, k, v, d = given = arrays(length=256, width=width, value=value)
    mask = mask_of(kind, packed(((100, 156), (201, 11, 44))), 64)
    assert triton.suits(q, k, v, mask)
    attend = functools.partial(flash.attend, interpreted(triton))
    wanted = result_and_gradients(attention.dense, mask, q, k, v, d)
    same(result_and_gradients(attend, mask, *given), wanted, 1e-5)


def test_decoding_and_odd_lengths_are_not_for_kernels_of_our_own():
    q, k, v, _ = arrays(length=256)
    batch = packed(((256,), (256,)))
    causal = masks.causal_mask(batch)
    assert mosaic.suits(q, k, causal) and triton.suits(q, k, v, causal)
    unordered = dataclasses.replace(causal, ordered=False)
    odd = [a[:, :100] for a in (q, k, v)]
    assert not mosaic.suits(q, k, unordered) and not mosaic.suits(*odd[:2], causal)
    assert not triton.suits(q, k, v, unordered) and not triton.suits(*odd, causal)


# --- Divided sequences


#: Right only where rows stand in order, as a kernel of one device may take them to.
WHOLE = functools.partial(attention.blockwise, block=BLOCK)


def spread(mechanism, shards, kernel=chunked.KERNEL, whole=WHOLE):
    mesh = Mesh(
        np.array(jax.devices()[:shards]), ("context",), axis_types=(AxisType.Auto,)
    )
    rows = PartitionSpec(None, "context")
    attend = context.spread(mechanism, context.Kernels(whole, kernel), "context")
    return jax.shard_map(
        attend, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )


def turned(tree, order):
    return jax.tree.map(lambda a: a[:, order], tree)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("mechanism", list(context.MECHANISMS))
def test_divided_sequences_attend_as_whole_ones(mechanism, shards, kind, monkeypatch):
    """Documents cross the shards, and a window is wider than one."""
    monkeypatch.setattr(chunked, "BLOCK", BLOCK // 2)
    given, batch = arrays(kv_heads=1, value=6), packed()
    order = context.zigzag(LENGTH, shards)
    wanted = result_and_gradients(attention.dense, mask_of(kind, batch), *given)
    attend = jax.jit(functools.partial(result_and_gradients, spread(mechanism, shards)))
    found = attend(mask_of(kind, turned(batch, order)), *turned(given, order))
    same(found, turned(wanted, order), 1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "shards"),
    [(8, 2, 4), (8, 4, 2), (12, 6, 4), (12, 4, 6), (8, 1, 8)],
)
def test_every_shard_gets_the_key_value_heads_of_its_queries(heads, kv_heads, shards):
    """As many as shards, more, fewer, and groups that straddle two of them."""
    length = 48
    given = arrays(length, heads, kv_heads)
    batch, order = packed(((48,), (31, 17))), context.zigzag(length, shards)
    wanted = result_and_gradients(attention.dense, masks.causal_mask(batch), *given)
    attend = spread("ulysses", shards, whole=attention.dense)
    attend = jax.jit(functools.partial(result_and_gradients, attend))
    found = attend(masks.causal_mask(turned(batch, order)), *turned(given, order))
    same(found, turned(wanted, order), 1e-5)


@pytest.mark.parametrize("mechanism", list(context.MECHANISMS))
def test_divided_sequences_in_bfloat16(mechanism):
    """Within 2 % of float32: products round to 8 bits, sums are kept in float32."""
    narrow, batch = arrays(dtype=jnp.bfloat16), packed()
    wide = [a.astype(jnp.float32) for a in narrow]
    order = context.zigzag(LENGTH, 4)
    wanted = result_and_gradients(attention.dense, masks.causal_mask(batch), *wide)
    attend = jax.jit(functools.partial(result_and_gradients, spread(mechanism, 4)))
    mask = masks.causal_mask(turned(batch, order))
    found = attend(mask, *turned(narrow, order))
    assert found[0].dtype == jnp.bfloat16
    same(found, turned(wanted, order), 2e-2)


@pytest.mark.parametrize("mechanism", list(context.MECHANISMS))
def test_divided_sequences_in_the_kernel_for_tpus(mechanism, monkeypatch):
    whole = functools.partial(splash.attend, interpret=True)
    divided(mechanism, mosaic, 512, monkeypatch, whole)


@pytest.mark.parametrize("mechanism", ["gather", "ring"])
@pytest.mark.parametrize("length", [256, 192])
def test_divided_sequences_in_the_kernel_for_gpus(mechanism, length, monkeypatch):
    divided(mechanism, triton, length, monkeypatch)


def test_no_block_of_gathered_keys_crosses_the_end_of_a_chunk(monkeypatch):
    """A chunk of 384, which blocks of 256 do not divide, though they do half a row."""
    divided("gather", mosaic, 1536, monkeypatch, k_block=256)


def divided(mechanism, kernel, length, monkeypatch, whole=WHOLE, k_block=128):
    """Two shards whose kernels are a machine's that is not here, against one."""
    small_blocks(monkeypatch, k_block)
    batch = packed(((length // 3, length - length // 3), (length - 60, 11, 49)))
    given, order = arrays(length), context.zigzag(length, 2)
    wanted = result_and_gradients(attention.dense, masks.causal_mask(batch), *given)
    attend = spread(mechanism, 2, interpreted(kernel), whole)
    attend = jax.jit(functools.partial(result_and_gradients, attend))
    found = attend(masks.causal_mask(turned(batch, order)), *turned(given, order))
    same(found, turned(wanted, order), 1e-5)


@pytest.mark.parametrize(
    ("layout", "kept"),
    [
        ("fsdp=8", "its own"),
        ("context=8", attention.RESIDUAL),
        ("context=8+ring", attention.RESIDUAL),
        ("context=8+ulysses", "its own"),
    ],
)
def test_what_is_kept_is_what_the_kernel_at_work_names(layout, kept):
    place = layouts.Placement(layouts.parse(layout), attend_residual="its own")
    assert place.residual == kept


def test_zigzag_gives_every_shard_as_many_pairs():
    length, shards = 64, 4
    order = context.zigzag(length, shards)
    assert sorted(order) == list(range(length))
    pairs = (order + 1).reshape(shards, -1).sum(1)
    assert len(set(pairs)) == 1
    with pytest.raises(ValueError, match="use a multiple of 8"):
        context.zigzag(length + 4, shards)


# --- Masks


@hypothesis.given(
    kind=some.sampled_from(KINDS),
    cuts=some.lists(some.integers(1, 63), max_size=4, unique=True),
    sides=some.tuples(*[some.sampled_from([2, 4, 8, 16])] * 2),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_no_block_with_a_visible_pair_is_skipped(kind, cuts, sides):
    lengths = np.diff([0, *sorted(cuts), 64])
    mask = mask_of(kind, packed((tuple(lengths),)))
    rows, columns = sides
    apart = np.asarray(mask.visible_BTS()).reshape(
        1, 64 // rows, rows, 64 // columns, columns
    )
    meet, whole = mask.pairs_QS(*sides), mask.whole_QS(*sides)
    assert not np.any(apart.any((0, 2, 4)) & ~np.asarray(meet))
    if kind not in ("prefix", "blocks"):
        assert not np.any(np.asarray(whole) & ~apart.all((0, 2, 4)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prefix"])
def test_density_is_the_share_of_pairs(kind):
    mask = mask_of(kind, packed(((LENGTH,), (LENGTH,))))
    counted = float(np.mean(np.asarray(mask.visible_BTS())))
    assert mask.density() == pytest.approx(counted, rel=1e-6)


def test_a_block_map_that_cannot_be():
    with pytest.raises(ValueError, match="square"):
        masks.Blocks.of(4, np.ones((2, 3)))
    with pytest.raises(ValueError, match="block 1 does not see itself"):
        masks.Blocks.of(4, [[1, 0], [1, 0]])
