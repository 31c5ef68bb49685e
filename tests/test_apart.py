"""A layer's backward pass in two: what is made later, and what must not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab import dims, models
from scaling_lab.layouts import Layout, Placement
from scaling_lab.parallel import apart

#: Of a family's layer what is no matrix, or a matrix of experts.
AT_ONCE = {
    "llama": {"attention_norm_D", "ffn_norm_D"},
    "gpt2": {
        *("attention_norm_D", "attention_norm_bias_D", "ffn_norm_D", "ffn_norm_bias_D"),
        *("query_bias_NH", "key_bias_KH", "value_bias_KH", "out_bias_D"),
        *("up_bias_F", "down_bias_D"),
    },
    "mixtral": {
        *("attention_norm_D", "ffn_norm_D"),
        *("router_DE", "gate_EDF", "up_EDF", "down_EFD"),
    },
}


def traced(family, tiny):
    """A layer of a family, as its contractions are looked for in it."""
    config = tiny(family)
    seen = {}

    def stack(segments, x_BTD, per_batch):
        seen["segment"], seen["inputs"] = segments[-1], (x_BTD, per_batch)
        return x_BTD, []

    place = Placement(Layout({}), stack_with=stack)
    shape = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    names = ("tokens_BT", "targets_BT", "positions_BT", "segments_BT")

    def run(params, batch):
        output = models.family_of(config).hidden(config, params, batch, place)
        found = seen["segment"], seen["inputs"]
        seen["found"] = taken(*found)
        return output.hidden_BTD

    def taken(segment, inputs):
        def layer(tap, params, x_BTD, per_batch):
            tapped = Placement(Layout({}), tap=tap)
            return segment.block(tapped, params, x_BTD, per_batch, None)[0]

        one = {dims.unstacked(name): a[0] for name, a in segment.params.items()}
        seen["names"] = set(one)
        return apart.contractions(layer, one, *inputs)

    params = jax.eval_shape(
        lambda: models.family_of(config).init(config, jax.random.key(0))
    )
    jax.eval_shape(run, params, dict.fromkeys(names, shape))
    return seen["found"], seen["names"]


@pytest.mark.parametrize("family", AT_ONCE)
def test_every_matrix_of_a_layer_is_made_later(family, tiny):
    found, names = traced(family, tiny)
    assert names - apart.weights(found) == AT_ONCE[family]


def test_what_several_products_share_is_kept_once(tiny):
    found, _ = traced("llama", tiny)
    kept = apart.letters(found)
    assert sorted(key for key in kept if key.endswith(" x")) == [
        "attention/out x",
        "attention/query x",
        "ffn/down x",
        "ffn/gate x",
    ]
    assert len(kept) == 7 + 4
    assert found["attention/value"].x == "attention/query"


def of_tied(tap, params, x_BTD):
    """A layer that uses one weight twice as a factor, and another as a number too."""
    place = Placement(Layout({}), tap=tap)
    for name in ("first", "second"):
        x_BTD = jnp.tanh(
            place.einsum("BTD,DF->BTF", x_BTD, params["twice_DF"], name=name)
        )
    x_BTD = place.einsum("BTD,DF->BTF", x_BTD, params["more_DF"], name="more")
    return x_BTD * jnp.mean(params["more_DF"])


def test_gradients_add_up_and_other_uses_are_seen():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "twice_DF": jax.random.normal(keys[0], (8, 8)),
        "more_DF": jax.random.normal(keys[1], (8, 8)),
    }
    x_BTD = jax.random.normal(keys[2], (2, 4, 8))
    found = apart.contractions(of_tied, params, x_BTD)
    assert apart.weights(found) == {"twice_DF"} and len(found) == 2

    def plain(params, x_BTD):
        return of_tied(None, params, x_BTD)

    def in_two(params, kept, x_BTD):
        return of_tied(apart.tap_of(found, kept), params, x_BTD)

    result_BTF, back = jax.vjp(plain, params, x_BTD)
    d_BTF = jnp.cos(result_BTF)
    wanted, d_BTD = back(d_BTF)
    _, back = jax.vjp(in_two, params, apart.room(found, ()), x_BTD)
    now, kept, found_BTD = back(d_BTF)
    later = apart.gradients(found, Placement(Layout({})).einsum, params, kept)
    np.testing.assert_allclose(found_BTD, d_BTD, rtol=1e-5)
    np.testing.assert_allclose(now["more_DF"], wanted["more_DF"], rtol=1e-5)
    assert not np.any(now["twice_DF"])
    np.testing.assert_allclose(later["twice_DF"], wanted["twice_DF"], rtol=1e-5)
