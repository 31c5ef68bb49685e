"""Blocks that queries choose: the kernel, what a choice may know, and training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.training import Trained, run_of, same

from scaling_lab import cost, models
from scaling_lab.layouts import IllegalLayout, Layout, Placement
from scaling_lab.models import ops
from scaling_lab.parallel import attention, choice, chosen, flash, triton
from scaling_lab.parallel.masks import causal_mask
from scaling_lab.parallel.sight import Sight

BLOCK = 4
SIGHT = Sight(top=2, near=1, block=BLOCK)
PLACE = Placement(Layout({}))


def chosen_mask(batch, q_BTNH, c_BSKH, block, sizes=(2, 1)):
    mask = causal_mask({key: jnp.asarray(array) for key, array in batch.items()})
    firsts, _ = choice.firsts(q_BTNH, mask, block)
    summaries = choice.summaries(mask, block)
    return choice.choose(firsts, c_BSKH, summaries, sizes, mask)


def result_and_gradients(attend, mask, q, k, v, d):
    out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
    return out, *back(d)


@pytest.mark.parametrize("queries", [1, 16, 1024])
def test_gathered_blocks_are_attention_under_the_mask(queries, packed, monkeypatch):
    monkeypatch.setattr(chosen, "QUERIES", queries)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d = (
        jax.random.normal(key, (2, 64, *shape))
        for key, shape in zip(keys, ((4, 8), (2, 8), (2, 6), (4, 6)), strict=True)
    )
    mask = chosen_mask(packed(2, 64), q, k[:, 7::8], 8)
    wanted = result_and_gradients(attention.dense, mask, q, k, v, d)
    found = result_and_gradients(chosen.attend, mask, q, k, v, d)
    for left, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_the_kernel_for_gpus_goes_over_chosen_blocks(packed):
    """Every key-value head its own, and of long blocks some in two."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d = (
        jax.random.normal(key, (2, 256, *shape))
        for key, shape in zip(keys, ((4, 16), (2, 16), (2, 16), (4, 16)), strict=True)
    )
    mask = chosen_mask(packed(2, 256), q, k[:, 31::32], 32)
    assert triton.suits(q, k, v, mask)
    kernel = flash.Kernel(
        functools.partial(triton.forward, interpret=True),
        functools.partial(triton.backward, interpret=True),
    )
    attend = functools.partial(flash.attend, kernel)
    wanted = result_and_gradients(attention.dense, mask, q, k, v, d)
    found = result_and_gradients(attend, mask, q, k, v, d)
    for left, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_the_best_blocks_are_chosen_and_the_near_ones_always():
    """Summaries that point where one head looks: the third block, then the first."""
    batch = {"positions_BT": np.arange(24)[None], "segments_BT": np.zeros((1, 24), int)}
    q = jnp.zeros((1, 24, 1, 2)).at[..., 0].set(1.0)
    c = jnp.zeros((1, 6, 1, 2)).at[0, :, 0, 0].set(jnp.asarray([2.0, 0, 3, 1, 9, 9]))
    picks = chosen_mask(batch, q, c, 4).picks_BKQC
    assert picks[0, 0].tolist() == [
        [0, -1, -1, -1],
        [1, 0, -1, -1],
        [2, 1, 0, -1],
        [3, 2, 0, 1],
        [4, 3, 2, 0],
        [5, 4, 2, 0],
    ]


def test_density_is_the_pairs_of_the_work():
    batch = {"positions_BT": np.arange(64)[None], "segments_BT": np.zeros((1, 64), int)}
    q = jax.random.normal(jax.random.key(0), (1, 64, 2, 8))
    mask = chosen_mask(batch, q, q[:, 7::8], 8)
    assert mask.density() == pytest.approx(float(mask.visible_BKTS().mean()))
    summaries = choice.summaries(mask, 8)
    seen = float(summaries.visible_BTS().mean())
    assert summaries.density() == pytest.approx(seen)


# --- Models


@functools.cache
def case(model):
    """Parameters whose gates, compressors and choices are not those of the start."""
    params = models.family_of(model).init(model, jax.random.key(0))

    def moved(name, array):
        noise = jax.random.normal(jax.random.key(len(name)), array.shape)
        return array + 0.3 * noise if "norm" not in name else array

    layers = {name: moved(name, array) for name, array in params["layers"].items()}
    return {**params, "layers": layers}


def hidden(model, params, tokens_BT, segments_BT, start=0, cache=None):
    length = tokens_BT.shape[1]
    at_BT = jnp.broadcast_to(jnp.arange(start, start + length)[None], tokens_BT.shape)
    batch = {"tokens_BT": tokens_BT, "positions_BT": at_BT, "segments_BT": segments_BT}
    return models.family_of(model).hidden(model, params, batch, PLACE, cache)


@pytest.fixture(scope="module")
def model(tiny):
    return models.seeing(tiny("llama"), SIGHT)


def test_nothing_later_and_no_other_document_is_known(model):
    """A token changed at 13 changes nothing before it, and nothing after 17."""
    tokens_BT = jax.random.randint(jax.random.key(1), (1, 32), 0, model.V)
    segments_BT = jnp.asarray([[0] * 17 + [1] * 15])
    params = case(model)
    before = hidden(model, params, tokens_BT, segments_BT).hidden_BTD
    other = tokens_BT.at[0, 13].add(1) % model.V
    after = hidden(model, params, other, segments_BT).hidden_BTD
    moved = np.abs(np.asarray(after - before))[0].max(-1) > 1e-6
    assert moved[13:17].all() and not moved[:13].any() and not moved[17:].any()


def test_a_cache_sees_what_a_row_does(model):
    length, first, params = 24, 13, case(model)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, length), 0, model.V)
    zeros_BT = jnp.zeros_like(tokens_BT)
    wanted = hidden(model, params, tokens_BT, zeros_BT).hidden_BTD
    cache, parts = ops.empty_cache(model, 2, length, jnp.float32), []
    for start, stop in ((0, first), *((n, n + 1) for n in range(first, length))):
        own = slice(start, stop)
        out = hidden(model, params, tokens_BT[:, own], zeros_BT[:, own], start, cache)
        cache = out.cache
        parts.append(out.hidden_BTD)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), wanted, atol=2e-5)


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize(
    ("family", "layout", "microbatches"),
    [
        ("llama", "fsdp=4,tensor=2+sequence", 1),
        ("llama", "tensor=8", 1),
        pytest.param("llama", "stage=2,fsdp=4", 2, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "expert=2,fsdp=4", 1, marks=pytest.mark.slow),
    ],
)
def test_a_layout_trains_as_one_device(family, layout, microbatches, tiny, batches):
    model = models.seeing(tiny(family), SIGHT)
    fields = {"accumulate": microbatches}
    wanted = Trained(run_of(model, Layout({}), **fields), batches)
    same(Trained(run_of(model, layout, **fields), batches), wanted)


def test_everything_that_chooses_learns(model, batches):
    trained = Trained(run_of(model, Layout({})), batches)
    names = ("pool", "up_LHU", "down_LUH", "chosen_gate", "summary_gate")
    for path, moved in trained.update.items():
        if any(name in path for name in names):
            assert np.abs(moved).max() > 0, path


def test_flops_count_both_branches(model):
    config = run_of(model, Layout({}))
    told = {e.name: e for e in cost.record(config) if e.verb == "attend"}
    picks = SIGHT.top + SIGHT.near + 1
    blocks = config.length // BLOCK
    pairs = sum(min(row, picks - 1) * BLOCK**2 for row in range(blocks))
    pairs += blocks * BLOCK * (BLOCK + 1) // 2
    scores = 4 * config.batch * model.N * model.H * model.L
    assert told["attention/attend"].flops == pytest.approx(scores * pairs)
    summaries = sum((t + 1) // BLOCK for t in range(config.length))
    assert told["attention/summary"].flops == pytest.approx(scores * summaries)


@pytest.mark.parametrize(
    ("changes", "layout", "why"),
    [
        ({}, "data=2,context=4", "divide heads instead, as tensor=2"),
        ({"length": 30}, "fsdp=8", "use --length 28, or a block of 2"),
        ({"axis_type": "explicit"}, "fsdp=8", "use --axis-type auto"),
    ],
)
def test_what_cannot_choose(changes, layout, why, model):
    with pytest.raises((IllegalLayout, ValueError), match=why):
        run_of(model, layout, **changes)


def test_words_of_a_choice(tiny):
    assert Sight.parse("top=4,block=16").text == "top=4,near=1,block=16"
    with pytest.raises(ValueError, match="leave window=8 out"):
        Sight.parse("top=4,window=8")
    with pytest.raises(ValueError, match="say top=4 too"):
        Sight.parse("near=2")
    with pytest.raises(ValueError, match="ask llama, qwen3 or mixtral"):
        models.seeing(tiny("gpt2"), SIGHT)
    both = models.seeing(tiny("llama"), dataclasses.replace(SIGHT, every=2))
    params = jax.eval_shape(
        lambda: models.family_of(both).init(both, jax.random.key(0))
    )
    assert "key_pool_LIH" in params["layers_00"]
    assert "key_pool_LIH" not in params["layers_01"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("every", [None, 2])
def test_parameter_count_is_the_formula(family, every, tiny):
    model = models.seeing(tiny(family), dataclasses.replace(SIGHT, every=every))
    file = models.family_of(model)
    leaves = jax.tree.leaves(
        jax.eval_shape(lambda: file.init(model, jax.random.key(0)))
    )
    assert sum(leaf.size for leaf in leaves) == file.parameter_count(model)
