"""Layers in stages train as one device does, and move what was meant to be moved."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contracts.training import Trained, of_text, run_of, same
from scaling_lab import cost, dims, models, train
from scaling_lab.compile import describe
from scaling_lab.cost import traffic
from scaling_lab.layouts import IllegalLayout, Layout, Placement, make_mesh
from scaling_lab.parallel import schedules
from scaling_lab.parallel.schedules import in_step
from scaling_lab.parallel.verbs import Segment

pytestmark = pytest.mark.usefixtures("quick_compiles")

#: family, layout, layers, what else differs. Five layers are uneven on 2 and 4 stages.
#: Even ones meet every axis in `covering`.
CASES = [
    ("llama", "stage=4,data=2", 5, {"remat": "full"}),
    ("llama", "stage=2,data=2,fsdp=2+zero1", 3, {"remat": "save:ffn/gate"}),
    ("llama", "stage=2,fsdp=4+1f1b", 4, {"remat": "full", "z_loss": 1e-3}),
    ("gpt2", "stage=4,data=2+1f1b", 5, {}),
    ("llama", "stage=2,data=2,tensor=2+sequence+1f1b", 4, {}),
    ("llama", "stage=2,data=4", 4, {"reduce": "float32"}),
    ("llama", "stage=2,data=2,tensor=2+sequence+zero2+1f1b", 3, {}),
    ("llama", "stage=2,fsdp=4+zero_bubble", 4, {"remat": "full", "z_loss": 1e-3}),
    ("gpt2", "stage=4,data=2+zero_bubble", 5, {}),
    ("llama", "stage=2,data=2,tensor=2+sequence+zero2+zero_bubble", 3, {}),
    ("gpt2", "stage=4,data=2+interleaved=2", 8, {}),
    ("gpt2", "stage=2,fsdp=4", 5, {"remat": "full", "stack": "unroll"}),
    ("gpt2", "stage=2,data=2,tensor=2+zero2", 4, {"z_loss": 1e-3}),
]


@pytest.fixture(scope="module")
def sixteen(packed):
    return [packed(16, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def reference(sixteen):
    """Three steps of four microbatches on one device, once for each model."""
    made = {}

    def of(model, z_loss=0.0):
        if (model, z_loss) not in made:
            fields = {"batch": 16, "accumulate": 4, "z_loss": z_loss}
            config = run_of(model, Layout({}), **fields)
            made[model, z_loss] = Trained(config, sixteen)
        return made[model, z_loss]

    return of


@pytest.mark.parametrize(
    ("family", "layout", "layers", "changes"),
    CASES,
    ids=[f"{f}-{t}-{n}-{'-'.join(map(str, c.values()))}" for f, t, n, c in CASES],
)
def test_stages_train_as_one_device(
    family, layout, layers, changes, tiny, sixteen, reference
):
    model = tiny(family, L=layers)
    fields = {"batch": 16, "accumulate": 4, **changes}
    found = Trained(run_of(model, layout, **fields), sixteen)
    same(found, reference(model, changes.get("z_loss", 0.0)))
    assert found.program.step._cache_size() == 1


def test_layers_rest_on_their_stage_or_by_width(tiny, sixteen):
    """Half of every weight of a layer on each of two stages, whichever way."""
    model = tiny("llama", L=4)
    for layout in ("stage=2", "stage=2+interleaved=2"):
        config = run_of(model, layout, batch=16, accumulate=2)
        state = train.make_program(config).init()
        gate = state.params["layers"]["gate_LDF"]
        assert gate.addressable_shards[0].data.size * 2 == gate.size
        head = state.params["head_DV"]
        assert head.addressable_shards[0].data.size * 2 == head.size
        whole = gate.addressable_shards[0].data.shape[0] == 4
        assert whole == ("interleaved" in layout)


def test_evaluation_goes_through_the_stages(tiny, sixteen):
    model = tiny("llama", L=4)
    nats = []
    for layout in (Layout({}), "stage=4,data=2"):
        program = train.make_program(run_of(model, layout, batch=16, accumulate=4))
        params = program.init().params
        nats.append(program.evaluate(params, program.put(sixteen[0]))["nats"])
    np.testing.assert_allclose(nats[0], nats[1], 1e-5)


def test_evaluation_is_of_microbatches_too(tiny, sixteen):
    """Experts choose among a microbatch's tokens, under every layout."""
    model = models.routed(tiny("mixtral"), "choice=expert,top=1")
    nats = []
    for layout in (Layout({}), "stage=2,fsdp=4"):
        program = train.make_program(run_of(model, layout, batch=16, accumulate=4))
        # As far from uniform as a trained model's.
        params = jax.tree.map(lambda a: 4 * a, program.init().params)
        nats.append(program.evaluate(params, program.put(sixteen[0]))["nats"])
    np.testing.assert_allclose(nats[0], nats[1], 1e-5)


def test_evaluation_needs_no_more_than_a_microbatch(tiny):
    model, needed = tiny("llama", L=4), []
    for parts in (1, 8):
        config = run_of(model, "fsdp=8", batch=64, accumulate=parts, length=128)
        program = train.make_program(config)
        state, batch = program.abstract_arguments()
        compiled = program.evaluate.lower(state.params, batch).compile()
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[0] > 2 * needed[1]


def test_alternating_stages_hold_fewer_microbatches(tiny, packed):
    """What a step keeps grows with its microbatches under GPipe, and not under 1F1B."""
    model, needed = tiny("llama", L=4), {}
    for layout in ("stage=2,data=4", "stage=2,data=4+1f1b"):
        for parts in (4, 16):
            fields = {"batch": 4 * parts, "accumulate": parts, "length": 64}
            config = run_of(model, layout, remat="full", **fields)
            program = train.make_program(config)
            compiled = program.step.lower(*program.abstract_arguments()).compile()
            memory = compiled.memory_analysis()
            needed[layout, parts] = memory.temp_size_in_bytes
    grown = {
        layout: needed[layout, 16] - needed[layout, 4] for layout, _ in list(needed)
    }
    assert grown["stage=2,data=4"] > 3 * grown["stage=2,data=4+1f1b"], needed


@pytest.mark.parametrize("kind", ["eager_1f1b", "eager_zb_h1"])
def test_the_loop_alternates_as_its_schedule_says(kind):
    for stages, parts in ((1, 3), (2, 4), (4, 4), (4, 9)):
        schedule = schedules.make(kind, stages, parts)
        wanted = [[(t.does, t.microbatch) for t in own] for own in schedule.orders]
        assert in_step.order(stages, parts, kind == "eager_zb_h1") == wanted


# --- What is moved


def column_of(config):
    """The compiled column of a config, and how often each collective runs by axes."""
    program = train.make_program(config)
    compiled = program.step.lower(*program.abstract_arguments()).compile()
    mesh = config.placed_layout.mesh
    column = describe(compiled, mesh, 1.0, None, "cpu:8", config)
    times = collections.Counter()
    for row in column["collectives"]:
        times[row["kind"], *row["axes"]] += row["count"]
    return column, times


@pytest.mark.parametrize(
    "layout",
    [
        "stage=2,fsdp=4",
        "stage=2,fsdp=4+interleaved=2",
        "stage=2,fsdp=4+1f1b",
        "stage=2,fsdp=4+zero_bubble",
    ],
)
def test_only_neighbours_talk_between_the_ticks(layout, tiny):
    """No stage's weights and no buffer of a pipeline are gathered over its stages.

    Interleaved, each weight of a layer goes to its stage once, and its gradient back.
    """
    fields = {"batch": 16, "accumulate": 4, "stack": "scan", "target": "cpu:8"}
    config = run_of(tiny("llama", L=4), layout, **fields)
    weights = len(dims.leaves(config.abstract_params["layers"]))
    interleaved = "interleaved" in layout
    ticks = 4 * (1 + interleaved) + 1
    column, times = column_of(config)
    assert column["unasked"] == []
    # 1F1B's last tick is backward alone, and the compiler drops what it hands on.
    alternates = "1f1b" in layout or "zero_bubble" in layout
    assert times["collective-permute", "stage"] == 2 * ticks - alternates
    assert times["all-to-all", "stage"] == 2 * weights * interleaved
    assert not times["all-gather", "stage"]


@pytest.mark.parametrize(
    "layout",
    ["stage=2,data=4", "stage=2,data=2,tensor=2+sequence", "stage=2,data=4+1f1b"],
)
def test_copies_of_a_stage_sum_their_gradients_once_a_step(layout, tiny):
    """What goes over data does not grow with microbatches, but for 1F1B's ends."""
    moved = []
    for parts in (4, 8):
        fields = {"batch": 4 * parts, "accumulate": parts, "stack": "scan"}
        config = run_of(tiny("llama", L=4), layout, target="cpu:8", **fields)
        column, _ = column_of(config)
        assert column["unasked"] == []
        moved.append(
            sum(r["bytes"] for r in column["collectives"] if r["axes"] == ["data"])
        )
    ends = 4 * 64 * 256 * 4 * ("1f1b" in layout)
    assert moved[1] - moved[0] <= 1.1 * ends


@pytest.mark.parametrize(
    ("layout", "ticks"), [("stage=2,data=4", 9), ("stage=2,fsdp=4+interleaved=2", 17)]
)
@pytest.mark.parametrize("remat", ["none", "full", "save:ffn/down", "recompute:ffn/up"])
def test_ticks_keep_what_the_policy_says_and_no_weights(layout, ticks, remat, tiny):
    """A stage has its weights: kept for every tick they would be there many times."""
    model = dataclasses.replace(tiny("llama", L=8), F=56)
    fields = {"batch": 64, "accumulate": 8, "remat": remat, "precision": "bfloat16"}
    program = train.make_program(run_of(model, layout, **fields))
    text = program.step.lower(*program.abstract_arguments()).as_text()
    kept = set(re.findall(rf"tensor<{ticks}x([x\d]+)x(?:f32|bf16)>", text))
    d, f = model.D, model.F
    assert not [shape for shape in kept if shape.endswith((f"x{d}x{f}", f"x{f}x{d}"))]
    inside = [shape for shape in kept if shape.endswith(f"x{f}")]
    assert bool(inside) == (remat in ("none", "recompute:ffn/up"))


def of_copies(config, run):
    """Bytes that copies of stages are said to sum once a step, of a run of layers."""
    return sum(
        each.bytes
        for path, array in dims.leaves(config.abstract_params).items()
        for each in traffic.of_gradient(config, config.placed_layout, path, array.size)
        if path.startswith(f"{run}/") and "once a step" in each.why
    )


def test_copies_are_implied_as_many_bytes_as_are_summed(tiny):
    """Of the layers that a stage has."""
    fields = {"batch": 16, "accumulate": 4, "stack": "scan"}
    config = run_of(tiny("llama", L=4), "stage=2,data=4", target="cpu:8", **fields)
    column, _ = column_of(config)
    compiled = [r["bytes"] for r in column["collectives"] if r["axes"] == ["data"]]
    implied = of_copies(config, "layers")
    assert max(compiled) == pytest.approx(implied, rel=0.01)


def test_layers_without_a_router_have_copies_beside_layers_with_one(tiny):
    """Of a stage's one dense layer, or of the room for it."""
    fields = {"batch": 16, "accumulate": 4, "stack": "scan", "target": "cpu:8"}
    config = run_of(tiny("deepseek"), "stage=2,data=4", **fields)
    dense = config.abstract_params["layers_dense"].values()
    held = sum(array.size for array in dense) * 4
    assert of_copies(config, "layers_dense") == pytest.approx(held)
    assert of_copies(config, "layers") == 0


def test_what_a_router_says_is_of_a_whole_microbatch(tiny):
    """Its losses are no sum over sequences, so its stages have no copies."""
    fields = {"batch": 16, "accumulate": 4, "stack": "scan", "target": "cpu:8"}
    config = run_of(tiny("mixtral", L=4), "stage=2,data=4", **fields)
    column, times = column_of(config)
    assert column["unasked"] == [] and times["all-reduce", "data"] > 5


def test_explained_is_what_is_compiled(tiny):
    """Bytes handed on: every tick there and back, B·T·D of one device's microbatch."""
    fields = {"batch": 16, "accumulate": 4, "stack": "scan", "target": "cpu:8"}
    config = run_of(tiny("llama", L=4), "stage=2,fsdp=4", **fields)
    implied = cost.explain(config).collectives()
    found = {(item["kind"], *item["axes"]): item["bytes"] for item in implied}
    handed = found["collective-permute", "stage"]
    assert handed == 2 * 5 * 1 * 32 * 64 * 4
    rows = column_of(config)[0]["collectives"]
    moved = [row["bytes"] for row in rows if row["kind"] == "collective-permute"]
    assert sum(moved) == handed
    assert not [key for key in found if key[0] == "all-gather" and "stage" in key]


# --- Segments, what layers say beside their result, idle stages


def block(place, params, x_BTD, per_batch, cache):
    """A layer with a norm that has no gradient at zero, and something to say."""
    norm_BT1 = jnp.sqrt(jnp.sum(jnp.square(x_BTD), -1, keepdims=True))
    h_BTF = place.einsum("BTD,DF->BTF", x_BTD / norm_BT1, params["up_DF"], name="up")
    h_BTF = jnp.tanh(h_BTF + per_batch["shift_BT"][..., None])
    new_BTD = place.einsum("BTF,FD->BTD", h_BTF, params["down_FD"], name="down")
    said = {"mean": jnp.mean(h_BTF), "mean_F": jnp.mean(h_BTF, (0, 1))}
    return x_BTD + new_BTD, said, cache


def half(place, params, x_BTD, per_batch, cache):
    """Another kind of layer, for a second segment."""
    x_BTD = x_BTD + 0.5 * place.einsum(
        "BTD,D->BTD", x_BTD, params["scale_D"], name="scale"
    )
    return x_BTD, {"largest": jnp.max(per_batch["shift_BT"])}, cache


def two_segments(depths):
    keys = iter(jax.random.split(jax.random.key(0), 4))
    first, second = depths
    params = [
        {
            "up_LDF": jax.random.normal(next(keys), (first, 8, 16)),
            "down_LFD": jax.random.normal(next(keys), (first, 16, 8)),
        },
        {"scale_LD": jax.random.normal(next(keys), (second, 8))},
    ]
    return params, jax.random.normal(next(keys), (16, 4, 8))


@pytest.mark.parametrize(
    ("text", "depths"),
    [
        ("stage=2,data=4", (4, 2)),
        ("stage=4,data=2", (5, 1)),
        ("stage=2,data=4+interleaved=2", (4, 1)),
    ],
)
def test_segments_and_what_layers_say(text, depths):
    """Two segments one after the other, aux summed over layers, averaged over parts."""
    params, x_BTD = two_segments(depths)
    shift_BT = jnp.arange(64, dtype=jnp.float32).reshape(16, 4) / 64

    def result(place, params, x_BTD, shift_BT):
        segments = [Segment(block, params[0]), Segment(half, params[1])]
        x_BTD, aux, _ = place.stack(segments, x_BTD, {"shift_BT": shift_BT})
        said = jax.tree.map(lambda a: jnp.sum(jnp.square(a)), aux)
        return jnp.sum(jnp.square(x_BTD)) + sum(jax.tree.leaves(said)), aux

    def plain(params, x_BTD, shift_BT):
        """Microbatch after microbatch of every fourth sequence, averaged by hand."""
        place, segments = Placement(Layout({})), [Segment(block, params[0])]
        segments.append(Segment(half, params[1]))
        outs, auxes = [], []
        for m in range(4):
            part = {"shift_BT": shift_BT[m::4]}
            x, aux, _ = place.stack(segments, x_BTD[m::4], part)
            outs.append(x)
            auxes.append(aux)
        aux = jax.tree.map(lambda *each: sum(each) / 4, *auxes)
        said = jax.tree.map(lambda a: jnp.sum(jnp.square(a)), aux)
        total = sum(jnp.sum(jnp.square(x)) for x in outs)
        return total + sum(jax.tree.leaves(said)), aux

    layout = of_text(text)
    place = Placement(layout, make_mesh(layout), microbatches=4)
    staged = jax.jit(
        jax.value_and_grad(lambda *a: result(place, *a), (0, 1), has_aux=True)
    )
    wanted = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))
    found = staged(params, x_BTD, shift_BT), wanted(params, x_BTD, shift_BT)
    for left, right in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.all(np.isfinite(left))
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=1e-5)


# --- What cannot be


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("stage=8", {}, "stage=8 is more than the L=4 layers.*nearest stage: 4"),
        (
            "stage=4,data=2",
            {"accumulate": 2},
            "2 microbatches .* leave stages idle 60% .*--accumulate for batch=16: 4, 8",
        ),
        (
            "stage=4+interleaved=2",
            {},
            r"L=4 layers do not divide into stage=4 × interleaved=2 .*leave \+inter",
        ),
        (
            "stage=2+interleaved=3",
            {},
            "L=4 layers do not divide .*nearest interleaved: 2",
        ),
        (
            "stage=2+interleaved=2",
            {"accumulate": 3, "batch": 12},
            "3 microbatches .* groups of stage=2.*for batch=12: 2, 4",
        ),
        ("stage=4", {"accumulate": 1, "batch": 3}, "use a batch that 4 divides"),
        ("stage=2", {"axis_type": "explicit"}, "use --axis-type auto"),
        (
            "stage=2+interleaved",
            {},
            r"takes a number of at least 2, as \+interleaved=2",
        ),
        ("stage=2+interleaved=1", {}, "takes a number of at least 2"),
        ("data=2+zero1=3", {}, r"\+zero1 takes no value"),
        ("data=8+interleaved=2", {}, "works over axis stage"),
        ("stage=2+interleaved=2+1f1b", {}, "both say how to do stack"),
    ],
)
def test_what_cannot_be_says_what_can(layout, changes, message, tiny):
    fields = {"batch": 16, "accumulate": 4, **changes}
    with pytest.raises(IllegalLayout, match=message):
        run_of(tiny("llama", L=4), layout, **fields)


def test_a_vocabulary_that_does_not_divide_stays_whole(tiny):
    config = run_of(tiny("llama", L=4, V=257), "stage=2,data=4", batch=16, accumulate=4)
    assert not any(config.placed_layout.spec("params", "DV", "head_DV"))
    assert config.placed_layout.spec("params", "LDF", "gate_LDF")[0] == ("stage",)
    assert dims.letters("gate_LDF") == "LDF"
