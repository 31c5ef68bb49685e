"""Experts: every mechanism is the dense oracle, on every layout, gradients included."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab import models, optimizers
from scaling_lab.config import RunConfig, validate
from scaling_lab.layouts import IllegalLayout, Layout, Placement, make_mesh, parse
from scaling_lab.models.ops import swiglu
from scaling_lab.parallel import context, experts
from scaling_lab.parallel.experts import exchange
from scaling_lab.parallel.verbs import Routing

pytestmark = pytest.mark.usefixtures("quick_compiles")

E, D, F, B, T = 8, 16, 32, 8, 16
TOKENS = Routing(2, z=0.01)
GROUPED = Routing(3, "sigmoid", scaling=2.5, groups=4, top_groups=2, balance=0.0)
EXPERTS = Routing(2, choice="expert")
ROUTINGS = {"tokens": TOKENS, "grouped": GROUPED, "experts": EXPERTS}


@functools.cache
def arrays(hot=()):
    """Tokens, router and weights; with `hot` every token wants those experts alone."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    h_BTD = jax.random.normal(next(keys), (B, T, D))
    router_DE = jax.random.normal(next(keys), (D, E))
    weights = {
        "gate_EDF": jax.random.normal(next(keys), (E, D, F)),
        "up_EDF": jax.random.normal(next(keys), (E, D, F)),
        "down_EFD": jax.random.normal(next(keys), (E, F, D)) / F,
    }
    if hot:
        h_BTD = h_BTD.at[..., 0].set(10.0)
        for order, e in enumerate(hot):
            router_DE = router_DE.at[0, e].set(50.0 - order)
    return h_BTD, router_DE, weights, jnp.linspace(-0.1, 0.1, E)


def placed(layout, mechanism=None, **fields):
    layout = parse(layout, 8) if layout else Layout({})
    if mechanism:
        layout = dataclasses.replace(layout, bind={"experts": mechanism})
    mesh = make_mesh(layout) if layout.mesh else None
    return Placement(layout, mesh, **fields)


@functools.cache
def trained(layout, mechanism, routing, hot=(), **fields):
    """A layer's result, what it says, and gradients of both to everything."""
    place = placed(layout, mechanism, **fields)
    towards_BTD = jax.random.normal(jax.random.key(9), (B, T, D))
    # As runs do: a divided row stands in zigzag order.
    order_T = context.zigzag(T, place.layout.over(place.layout.spec("acts", "T")))
    back_T = np.argsort(order_T)

    def total(h_BTD, router_DE, weights, bias_E):
        out_BTD, aux = place.experts(
            h_BTD[:, order_T],
            router_DE,
            weights,
            swiglu,
            routing=routing,
            name="ffn/experts",
            bias_E=bias_E if routing.gate == "sigmoid" else None,
        )
        out_BTD = out_BTD[:, back_T]
        made = jnp.sum(out_BTD.astype(jnp.float32) * towards_BTD)
        return made + aux["loss"], (out_BTD, aux)

    value = jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)
    (_, said), gradients = jax.jit(value)(*arrays(hot))
    return jax.device_get((said, gradients))


def close(found, wanted, bound=3e-5):
    flat = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, right), left in zip(flat, jax.tree.leaves(found), strict=True):
        error = np.linalg.norm(np.float32(left) - np.float32(right))
        most = bound * max(np.linalg.norm(np.float32(right)), 1e-2)
        assert error <= most, (jax.tree_util.keystr(path), error, most)


LAYOUTS = [
    (None, None),
    ("sorted", "fsdp=4,tensor=2+sequence"),
    ("sorted", "expert=4,fsdp=2"),
    ("all_to_all", "expert=8"),
    ("all_to_all", "expert=2,fsdp=2,tensor=2"),
    ("all_to_all", "expert=2,context=2,fsdp=2"),
    ("ring_of_experts", "expert=2,context=2,tensor=2"),
    ("ring_of_experts", "expert=4,tensor=2+sequence"),
]


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("mechanism", "layout"), LAYOUTS)
def test_a_mechanism_is_the_oracle(mechanism, layout, routing):
    found = trained(layout, mechanism, ROUTINGS[routing])
    close(found, trained(None, "dense", ROUTINGS[routing]))


def test_the_compilers_grouped_product_is_the_blocked_one():
    found = trained(None, None, TOKENS, group_with=experts.ragged)
    close(found, trained(None, "dense", TOKENS))


def test_enough_places_are_the_oracle():
    roomy = dataclasses.replace(TOKENS, capacity=float(E))
    found = trained(None, "capacity", roomy)
    assert found[0][1]["dropped"] == 0.0
    close(found, trained(None, "dense", TOKENS))


@pytest.mark.parametrize("layout", ["expert=8", "expert=2,context=2,fsdp=2"])
def test_the_same_tokens_find_no_place_on_every_layout(layout):
    tight = dataclasses.replace(TOKENS, capacity=0.9)
    one = trained(None, "capacity", tight)
    assert 0.05 < one[0][1]["dropped"] < 0.5
    close(trained(layout, "capacity", tight), one)


# --- The corners


@pytest.mark.parametrize("mechanism", ["all_to_all", "ring_of_experts"])
def test_one_expert_hot_and_the_others_empty(mechanism):
    (out_BTD, said), gradients = trained("expert=8", mechanism, TOKENS, hot=(3, 5))
    close(((out_BTD, said), gradients), trained(None, "dense", TOKENS, hot=(3, 5)))
    load_E = np.zeros(E)
    load_E[[3, 5]] = 0.5
    np.testing.assert_allclose(said["load_E"], load_E)
    assert said["imbalance"] == E / 2 and said["dropped"] == 0.0
    assert said["balance"] > E / 2 * 0.99  # nearly all of one expert's affinity
    empty = [e for e in range(E) if e not in (3, 5)]
    for weight in gradients[2].values():
        assert np.all(weight[empty] == 0.0) and np.any(weight[3] != 0.0)


def test_what_overflows_is_counted_and_comes_back_as_nothing():
    one = Routing(1, capacity=2.0, normalise=False)
    (out_BTD, said), gradients = trained("expert=8", "capacity", one, hot=(3,))
    places = 2 * T // E
    assert said["dropped"] == pytest.approx(1 - places / T)
    assert np.all(out_BTD[:, places:] == 0.0) and np.all(out_BTD[:, :places] != 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("layout", [None, "expert=4,tensor=2"])
def test_bfloat16_is_within_two_percent(layout):
    """Routing stays in float32, so choices differ only where two experts are near."""
    wide = trained(None, "dense", TOKENS)
    rough = trained(layout, None, TOKENS, compute=jnp.bfloat16)
    np.testing.assert_allclose(rough[0][1]["load_E"], wide[0][1]["load_E"], atol=0.01)
    close(rough[0][0], wide[0][0], 0.1)
    same = trained(None, "dense", TOKENS, compute=jnp.bfloat16)
    close(rough, same, 0.02)


def test_experts_that_choose_are_all_as_busy():
    _, said = trained("expert=4,fsdp=2", "sorted", EXPERTS)[0]
    np.testing.assert_allclose(said["load_E"], 1 / E)
    assert said["imbalance"] == pytest.approx(1.0)


def test_statistics_of_even_load():
    """All logits alike: balance is 1, z is ln² E, entropy ln E."""
    place, (h_BTD, _, weights, _) = placed(None), arrays()
    _, said = place.experts(
        h_BTD, jnp.zeros((D, E)), weights, swiglu, routing=TOKENS, name="ffn/experts"
    )
    assert said["balance"] == pytest.approx(1.0)
    assert said["z"] == pytest.approx(np.log(E) ** 2, rel=1e-5)
    assert said["entropy"] == pytest.approx(np.log(E), rel=1e-5)
    wanted = TOKENS.balance * 1.0 + TOKENS.z * np.log(E) ** 2
    assert said["loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_routers_bias_moves_against_its_load():
    (_, said), gradients = trained(None, None, GROUPED)
    np.testing.assert_allclose(gradients[3], said["load_E"] * E - 1, atol=1e-6)
    config = optimizers.OptimizerConfig(learning_rate=0.5, balance=0.01, warmup=0)
    optimizer = optimizers.make(config, 10)
    params = {
        "layers": {"router_bias_LE": jnp.ones((1, E)), "up_LDF": jnp.ones((1, 2, 2))}
    }
    state = optimizer.init(params)
    excess = {
        **params["layers"],
        "router_bias_LE": jnp.array([[3.0, -1.0, 0.0, 0, 0, 0, 0, 0]]),
    }
    updates, _ = optimizer.update({"layers": excess}, state, params)
    moved = updates["layers"]["router_bias_LE"]
    np.testing.assert_allclose(moved[0, :3], [-0.01, 0.01, 0.0])
    assert list(optimizers.weights(params)["layers"]) == ["up_LDF"]


# --- Rows exchanged raggedly


def emulated(operand, output, starts, sizes, places, received, *, axis_name):
    """`jax.lax.ragged_all_to_all`, slice by slice, as its documentation says it."""
    del received
    every = [jax.lax.all_gather(a, axis_name) for a in (operand, starts, sizes, places)]
    operand_Z, starts_Z, sizes_Z, places_Z = every
    devices, slices = starts_Z.shape
    mine = jax.lax.axis_index(axis_name) * (slices // devices)
    row = jnp.arange(output.shape[0])
    for sender in range(devices):
        for number in range(slices // devices):
            at = mine + number
            start, place = starts_Z[sender, at], places_Z[sender, at]
            here = (row >= place) & (row < place + sizes_Z[sender, at])
            found = operand_Z[sender].at[row - place + start].get(mode="clip")
            output = jnp.where(here[:, None], found, output)
    return output


def test_rows_exchanged_raggedly_are_where_boxes_put_them(monkeypatch):
    """XLA:CPU lacks the collective, so its arguments are read here by another."""
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", emulated)
    place = placed("expert=4,fsdp=2")
    held = jax.sharding.PartitionSpec(("expert", "fsdp"))
    link = exchange.Link(("expert",), 4, 16, 24)
    expert_C = jax.random.randint(jax.random.key(3), (8, 24), 0, E - 2)
    size_E = jnp.sum(expert_C[..., None] == jnp.arange(E)[None, None], 1)
    rows_CD = jax.random.normal(jax.random.key(4), (8 * 24, 3))

    def both(rows_CD, size_E):
        route = exchange.route(size_E[0], link)
        ways = []
        for move in (exchange.padded, exchange.ragged):
            there = exchange.go(move, link, False, rows_CD, route)
            ways.append((there, exchange.go(move, link, True, there, route)))
        return ways

    # Each device sends no more than 16 rows to another, or a box would be too small.
    assert int(size_E.reshape(8, 4, 2).sum(-1).max()) <= 16
    spread = jax.shard_map(
        both, mesh=place.mesh, in_specs=held, out_specs=held, check_vma=False
    )
    padded, ragged = jax.jit(spread)(rows_CD, size_E)
    for left, right in zip(padded, ragged, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(ragged[1], rows_CD)  # home again


# --- What cannot be


def run_of(layout, **changes):
    toy = models.size("mixtral", "toy")
    routing = changes.pop("routing", toy.routing)
    model = dataclasses.replace(toy, routing=routing)
    return RunConfig(model, parse(layout, 8), **changes)


@pytest.mark.parametrize(
    ("layout", "changes", "said"),
    [
        ("context=8", {"length": 100}, "length=100 .* nearest length: 96, 112"),
        ("expert=16", {"batch": 16}, "E=8 .* nearest expert that divide it: 4, 8"),
        ("expert=8", {"routing": Routing(9)}, "top_k=9 of E=8 experts; use 1 to 8"),
        ("fsdp=8", {"routing": Routing(2, "tanh")}, "say softmax or sigmoid"),
        ("fsdp=8", {"routing": Routing(2, groups=3)}, "groups are equal"),
        ("fsdp=8", {"routing": Routing(4, groups=4)}, "raise top_groups"),
        ("fsdp=8", {"routing": Routing(2, capacity=0.0)}, "above 0, as 1.25"),
        ("fsdp=8+capacity", {"routing": EXPERTS}, "leave \\+capacity out"),
    ],
)
def test_what_cannot_be_says_why(layout, changes, said):
    with pytest.raises(ValueError, match=said):
        validate(run_of(layout, **changes))


def test_a_ring_of_experts_needs_their_axis():
    with pytest.raises(IllegalLayout, match="write expert=2,fsdp=8"):
        parse("fsdp=8+ring_of_experts")
