"""Model parts against plain arithmetic, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from scaling_lab import models
from scaling_lab.layouts import Layout, Placement
from scaling_lab.models import ops
from scaling_lab.parallel import attention, equations
from scaling_lab.parallel.masks import Mask, causal_mask

ONE = Placement(Layout({}))


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# --- Names


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (("lama", "toy"), "unknown family 'lama'; did you mean llama"),
        (("llama", "7b"), "unknown size of llama '7b'; did you mean "),
        (("gpt2", "125m"), "unknown size of gpt2 '125m'; did you mean 124m"),
        (("llama", "?"), "unknown size of llama '?'; there are toy, 33m, 1b"),
    ],
)
def test_unknown_names(ask, said):
    with pytest.raises(ValueError) as caught:
        models.size(*ask)
    assert said in str(caught.value)


def test_a_config_knows_its_family():
    for name in models.families():
        assert models.family_of(models.size(name, "toy")) is models.family(name)


# --- Norms and positions


def test_norms_are_their_formulas():
    x_BTD, scale_D, bias_D = draw(2, 3, 8), draw(8, seed=1), draw(8, seed=2)
    found = ops.rms_norm(ONE, x_BTD, scale_D, epsilon=1e-5, name="a")
    power = np.mean(np.square(x_BTD), -1, keepdims=True)
    np.testing.assert_allclose(
        found, x_BTD / np.sqrt(power + 1e-5) * scale_D[None, None], rtol=1e-5
    )
    found = ops.layer_norm(ONE, x_BTD, scale_D, bias_D, epsilon=1e-5, name="a")
    mean, variance = np.mean(x_BTD, -1)[..., None], np.var(x_BTD, -1)[..., None]
    wanted = (x_BTD - mean) / np.sqrt(variance + 1e-5) * scale_D[None, None]
    np.testing.assert_allclose(found, wanted + bias_D[None, None], atol=1e-5)


def test_norm_statistics_are_float32():
    """In bfloat16 the squares of 300 equal parts would lose their sum."""
    x_BTD = jnp.full((1, 1, 300), 3.0, jnp.bfloat16)
    place = Placement(Layout({}), compute=jnp.bfloat16)
    found = ops.rms_norm(place, x_BTD, jnp.ones(300), epsilon=0.0, name="a")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 1.0)


def test_rotary_scores_know_only_distance():
    q_BTNH, k_BTNH = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)

    def score(q_at, k_at):
        at = (jnp.array([[p]]) for p in (q_at, k_at))
        q_tables, k_tables = (ops.rope_tables(p, 16, 10_000.0, None) for p in at)
        return jnp.sum(ops.rotate(q_BTNH, q_tables) * ops.rotate(k_BTNH, k_tables))

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-3)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
    tables = ops.rope_tables(jnp.array([[0]]), 16, 10_000.0, None)
    np.testing.assert_array_equal(ops.rotate(q_BTNH, tables), q_BTNH)


def test_rope_scaling_stretches_long_waves_alone():
    at = jnp.array([[1]])
    plain = ops.rope_tables(at, 128, 500_000.0, None)
    scaled = ops.rope_tables(at, 128, 500_000.0, ops.RopeScaling(factor=8.0))
    plain_P, scaled_P = plain["sine_BTP"][0, 0], scaled["sine_BTP"][0, 0]
    np.testing.assert_array_equal(scaled_P[:20], plain_P[:20])  # short: as they were
    np.testing.assert_allclose(scaled_P[-10:], plain_P[-10:] / 8, rtol=1e-5)


# --- Attention and masks


def test_mask_is_causal_by_segment_and_window():
    positions_BT = jnp.array([[0, 1, 2, 0, 1]])
    segments_BT = jnp.array([[0, 0, 0, 1, 1]])
    batch = {"positions_BT": positions_BT, "segments_BT": segments_BT}
    found = np.asarray(causal_mask(batch, window=2).visible_BTS()[0], int)
    assert found.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("fields", "density"),
    [
        ({"ordered": True}, 10 / 16),
        ({"ordered": True, "window": 2}, 7 / 16),
        ({"causal": False}, 1.0),
        ({}, 1.0),
    ],
)
def test_mask_density(fields, density):
    at = jnp.arange(4)[None]
    assert Mask(at, at, **fields).density() == density


def test_grouped_attention_is_attention_with_heads_repeated():
    q, k, v = draw(2, 5, 4, 8), draw(2, 5, 2, 8, seed=1), draw(2, 5, 2, 8, seed=2)
    at = jnp.broadcast_to(jnp.arange(5)[None], (2, 5))
    repeated = (jnp.repeat(a, 2, axis=2) for a in (k, v))
    np.testing.assert_allclose(
        attention.dense(q, k, v, Mask(at, at)),
        attention.dense(q, *repeated, Mask(at, at)),
        rtol=1e-6,
    )


def test_attention_is_softmax():
    q, k, v = (draw(1, 3, 1, 4, seed=seed) for seed in range(3))
    at = jnp.arange(3)[None]
    scores = np.einsum("tH,sH->ts", q[0, :, 0], k[0, :, 0]) / 2
    scores = np.where(np.tri(3), scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1)[:, None]
    found = attention.dense(q, k, v, Mask(at, at))[0, :, 0]
    np.testing.assert_allclose(found, weights @ np.asarray(v[0, :, 0]), rtol=1e-4)


def test_a_query_that_sees_nothing_stays_finite():
    q = draw(1, 2, 1, 4)
    later = jnp.array([[5, 6]])
    out = attention.dense(q, q, q, Mask(jnp.array([[0, 1]]), later))
    assert np.isfinite(out).all()


# --- Equations and experts


@pytest.mark.parametrize(
    ("equation", "shapes", "said"),
    [
        ("BTD,DF", [(1, 2, 3), (3, 4)], "has no '->'; write the output's dims"),
        ("BTD,DF->BTX", [(1, 2, 3), (3, 4)], r"unknown dim\(s\) \['X'\]"),
        ("BTD,DF->BTN", [(1, 2, 3), (3, 4)], r"no operand has dim\(s\) \['N'\]"),
        ("BTD,DF->BTF", [(1, 2, 3)], "ffn/up: .* takes 2 operands, got 1"),
        (
            "BTD,DF->BTF",
            [(1, 3), (3, 4)],
            r"ffn/up: 'BTD' in .* has 3 dims, .*\(1, 3\)",
        ),
        ("BTD,DF->BTF", [(1, 2, 3), (5, 4)], "ffn/up: dim D is 3 and 5 in"),
    ],
)
def test_refused_equations(equation, shapes, said):
    with pytest.raises(ValueError, match=said):
        ONE.einsum(equation, *map(jnp.ones, shapes), name="ffn/up")


def test_contractions_are_einsums():
    x, w, s = draw(2, 3, 4), draw(4, 5, 6, seed=1), draw(3, seed=2)
    np.testing.assert_allclose(
        equations.contract("BTD,DNH->BTNH", (x, w)),
        np.einsum("btd,dnh->btnh", x, w),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        equations.contract("BTD,T->BTD", (x, s)), x * s[None, :, None]
    )
    np.testing.assert_allclose(
        equations.contract("BTD,DB->BTD", (x, w[:, 0, :2])),
        x * w[:, 0, :2].T[:, None],
    )


def test_an_index_outside_the_table_finds_no_neighbour():
    found = ONE.take(jnp.ones((4, 2)), jnp.array([[0, 3, 4, 99]]), name="embed")
    np.testing.assert_array_equal(found[0, :, 0], [1, 1, 0, 0])


def test_remat_policies():
    place = Placement(Layout({}), remat="some")
    family, config = models.family("llama"), models.size("llama", "toy")
    params = jax.eval_shape(lambda k: family.init(config, k), jax.random.key(0))
    batch = {
        key: jax.ShapeDtypeStruct((1, 4), jnp.int32)
        for key in ("tokens_BT", "positions_BT", "segments_BT")
    }
    with pytest.raises(ValueError, match="remat 'some' is not a policy; say none, fu"):
        jax.eval_shape(
            lambda p, b: family.hidden(config, p, b, place).hidden_BTD, params, batch
        )


def test_query_heads_that_straddle_groups_get_their_own_keys():
    """Six query heads over two devices and three key-value heads: 0 0 1 | 1 2 2."""
    draw = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(draw[0], (2, 8, 6, 4))
    k, v = (jax.random.normal(key, (2, 8, 3, 4)) for key in draw[1:])
    positions = jnp.broadcast_to(jnp.arange(8)[None], (2, 8))
    mask = Mask(positions, positions, ordered=True)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(AxisType.Auto,))
    spread = attention.by_heads(
        attention.dense, (q, k, v), mask, mesh, (None, None), ("tensor", None)
    )
    assert jnp.allclose(spread, attention.dense(q, k, v, mask), atol=1e-5)
