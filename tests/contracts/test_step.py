"""What may vary in a train step and what may not: microbatches, precision, memory."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from contracts.training import ADAMW, Trained, close, run_of, same, total
from scaling_lab import dims, train
from scaling_lab.layouts import Layout
from scaling_lab.optimizers import OptimizerConfig

pytestmark = pytest.mark.usefixtures("quick_compiles")

FSDP_TENSOR = "fsdp=4,tensor=2+sequence"


@pytest.fixture(scope="module")
def sixteen(packed):
    """Two batches of 16 sequences, to be cut into microbatches."""
    return [packed(16, seed=seed) for seed in range(2)]


def compiled_step(config, batch):
    program = train.make_program(config)
    return program.step.lower(program.init(), program.put(batch)).compile()


def shapes_in(text):
    """Every array shape of a program's text, as tuples."""
    found = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
    return {tuple(map(int, shape.split(","))) for shape in found}


# --- Microbatches


@pytest.mark.parametrize(
    ("parts", "layout", "axis_type"),
    [
        (2, FSDP_TENSOR, "auto"),
        (4, "data=2,tensor=4", "auto"),
        pytest.param(4, FSDP_TENSOR, "auto", marks=pytest.mark.slow),
        pytest.param(2, "zero2", "auto", marks=pytest.mark.slow),
        pytest.param(2, "hsdp", "auto", marks=pytest.mark.slow),
        pytest.param(2, FSDP_TENSOR, "explicit", marks=pytest.mark.slow),
    ],
)
def test_microbatches_add_up_to_the_batch(parts, layout, axis_type, tiny, sixteen):
    model = tiny("llama")
    fields = {"batch": 16, "z_loss": 1e-3}
    whole = Trained(run_of(model, Layout({}), **fields), sixteen)
    fields |= {"axis_type": axis_type, "accumulate": parts}
    same(Trained(run_of(model, layout, **fields), sixteen), whole)


@pytest.mark.parametrize("layout", [FSDP_TENSOR, "hsdp"])
def test_microbatches_move_no_sharding(layout, tiny, sixteen):
    """Cutting the batch moves no sequence: as many all-to-alls as without."""
    crossings = []
    for parts in (1, 2):
        config = run_of(tiny("llama"), layout, batch=16, accumulate=parts)
        text = compiled_step(config, sixteen[0]).as_text()
        tokens = [line for line in text.splitlines() if re.search(r"= s32\[\d", line)]
        moves = r"\b(all-to-all|all-gather|collective-permute)(-start)?\("
        moved = [line for line in tokens if re.search(moves, line)]
        crossings.append((text.count(" all-to-all("), len(moved)))
    assert crossings[1] == crossings[0]


# --- Precision


@pytest.mark.parametrize("layout", ["fsdp_tensor", "zero1"])
def test_bfloat16_stays_near_float32(layout, tiny, batches):
    """One part in 2^8 a rounding: the loss within 0.1%, gradients within 5%."""
    model = tiny("llama")
    exact = Trained(run_of(model, Layout({})), batches)
    rough = Trained(run_of(model, layout, precision="bfloat16"), batches)
    for left, right in zip(rough.metrics, exact.metrics, strict=True):
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-3)
    close(rough.gradients, exact.gradients, 0.05)
    differ = {k: rough.gradients[k] - exact.gradients[k] for k in exact.gradients}
    assert total(differ) > 0  # otherwise nothing was rounded
    for leaf in jax.tree.leaves(rough.state):
        assert leaf.dtype != jax.numpy.bfloat16


# --- Memory


@pytest.fixture(scope="module")
def kept(tiny, batches):
    """A step that keeps everything, its layers in one loop."""
    return Trained(run_of(tiny("llama"), FSDP_TENSOR, stack="scan"), batches)


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "full"},
        {"remat": "save:attention/attend,ffn/gate"},
        {"remat": "recompute:ffn/up", "stack": "unroll"},
        {"remat": "save:ffn/gate;offload:attention/query,ffn/up"},
        {"stack": "unroll"},
        {"stack": "scan:2", "remat": "save:ffn/gate;offload:ffn/up"},
        {"loss_chunks": 4},
    ],
    ids=lambda changes: (
        "-".join(changes.values()) if "loss_chunks" not in changes else "chunks"
    ),
)
def test_memory_choices_change_no_number(changes, tiny, batches, kept):
    same(Trained(run_of(tiny("llama"), FSDP_TENSOR, **changes), batches), kept)


def test_what_is_offloaded_leaves_for_the_host(tiny):
    """Of every layer one result by name leaves and comes back; no other does.

    A CPU's memory is its host's, so there this is in the program and moves nothing.
    """
    config = run_of(tiny("llama"), "fsdp=8", remat="save:ffn/gate;offload:ffn/up")
    program = train.make_program(config)
    text = str(jax.make_jaxpr(program.step)(*program.abstract_arguments()))
    stacked = set(re.findall(r"f32<host>\[(\d+),(\d+),(\d+),(\d+)\]", text))
    sizes = (config.model.L, config.batch, config.length, config.model.F)
    assert {tuple(map(int, each)) for each in stacked} == {sizes}


def test_recomputing_needs_less_memory(tiny, packed):
    """Of four scanned layers what is kept between the passes dominates."""
    model, batch = tiny("llama", L=4), packed(8, 128)
    needed = {}
    for policy in ("none", "full", "save:ffn/gate", "recompute:ffn/gate,ffn/up"):
        fields = {"length": 128, "remat": policy, "stack": "scan"}
        memory = compiled_step(run_of(model, "data=8", **fields), batch)
        needed[policy] = memory.memory_analysis().temp_size_in_bytes
    assert needed["full"] < needed["save:ffn/gate"] < needed["none"]
    assert needed["recompute:ffn/gate,ffn/up"] < needed["none"], needed


def test_gathered_weights_are_gathered_again(tiny, batches):
    """By layer, the backward pass gathers anew and keeps less; once, it keeps them."""
    model, gathers, needed = tiny("llama", L=4), {}, {}
    for layout in ("fsdp=8", "fsdp=8+gather_once"):
        compiled = compiled_step(run_of(model, layout, stack="scan"), batches[0])
        gathers[layout] = len(
            re.findall(r" all-gather(?:-start)?\(", compiled.as_text())
        )
        needed[layout] = compiled.memory_analysis().temp_size_in_bytes
    assert gathers["fsdp=8"] > gathers["fsdp=8+gather_once"]
    assert needed["fsdp=8"] < needed["fsdp=8+gather_once"]


#: Policies and stacks under which one layer in two keeps what it gathered.
KEEPS_SOME = [
    {"remat": "none", "stack": "scan"},
    {"remat": "full", "stack": "scan:2"},
    {"remat": "none", "stack": "unroll"},
    {"remat": "save:attention/attend", "stack": "scan:4"},
    {"remat": "recompute:ffn/gate", "stack": "unroll"},
    {"remat": "save:ffn/gate;offload:ffn/up", "stack": "scan"},
    {"remat": "full", "stack": "scan", "axis_type": "explicit"},
]


@pytest.fixture(scope="module")
def four_layers(tiny, batches):
    """Three steps of four layers on one device, once for each family."""
    models = {family: tiny(family, L=4) for family in ("llama", "mixtral")}
    return functools.cache(
        lambda family: Trained(run_of(models[family], Layout({})), batches)
    )


@pytest.mark.parametrize(
    ("family", "layout", "changes"),
    [
        *(("llama", "fsdp=8+gather_once=2", each) for each in KEEPS_SOME[:2]),
        ("llama", "fsdp=4,tensor=2+sequence+gather_once=4", KEEPS_SOME[3]),
        ("mixtral", "expert=4,fsdp=2+gather_once=2", KEEPS_SOME[1]),
        *(
            pytest.param(*case, each, marks=pytest.mark.slow)
            for case, kept in (
                (("llama", "fsdp=8+gather_once=2"), KEEPS_SOME[2:]),
                (("mixtral", "expert=4,fsdp=2+gather_once=2"), KEEPS_SOME[::3]),
            )
            for each in kept
        ),
    ],
    ids=lambda value: (
        "-".join(map(str, value.values())) if isinstance(value, dict) else value
    ),
)
def test_one_layer_in_some_keeps_its_weights(
    family, layout, changes, tiny, batches, four_layers
):
    config = run_of(tiny(family, L=4), layout, **changes)
    same(Trained(config, batches), four_layers(family))


@pytest.mark.parametrize(
    ("layers", "changes", "barred"),
    [
        (4, {"stack": "scan"}, False),
        (4, {"stack": "scan:2"}, False),
        (4, {"stack": "scan:4"}, True),  # one turn, which no compiler leaves a loop
        (4, {"stack": "unroll"}, True),
        (1, {"stack": "scan"}, True),
        (3, {"stack": "scan:2"}, True),  # one turn, and a layer beside it
        (5, {"stack": "scan:2"}, True),
    ],
)
def test_only_layers_of_a_loop_are_made_again_without_a_barrier(
    layers, changes, barred, tiny, batches, monkeypatch
):
    """Beside what was made first they would be taken for it."""
    monkeypatch.setattr(train.program, "_habits", lambda platform: {"barred": False})
    model, remat = tiny("llama", L=layers), "save:attention/attend"
    config = run_of(model, "fsdp=8", remat=remat, **changes)
    program = train.make_program(config)
    lowered = program.step.lower(program.init(), program.put(batches[0]))
    found = re.findall(r":(\d+) = stablehlo.optimization_barrier", lowered.as_text())
    of_layers = [count for count in map(int, found) if count > 2]  # two: `ops.swiglu`
    assert bool(of_layers) == barred
    if not barred:
        alone = Trained(run_of(model, Layout({}), remat=remat), batches)
        same(Trained(config, batches), alone)


@pytest.mark.parametrize(("stack", "turn"), [("scan", 1), ("scan:2", 2), ("scan:4", 1)])
def test_layers_made_again_whole_stand_in_turns_too(stack, turn, tiny, batches):
    """And never in one alone: what is made again must not be taken for the first."""
    model = tiny("llama", L=6)
    config = run_of(model, "fsdp=8", remat="full", stack=stack)
    found = Trained(config, batches)
    jaxpr = found.program.step.trace(*found.program.abstract_arguments()).jaxpr
    loops = re.findall(r"length=5\b.*?\bunroll=(\d+)", str(jaxpr), re.DOTALL)
    assert set(map(int, loops)) == {turn}  # forward, and back: the last is beside them
    same(found, Trained(run_of(model, Layout({})), batches))


# --- Logits

#: A vocabulary that no other size of the program equals.
ODD = 320


def test_no_device_holds_all_logits(tiny, packed):
    batch = packed(vocabulary=ODD)
    for layout, whole in (("tensor=8", False), ("data=8", True)):
        config = run_of(tiny("llama", V=ODD), layout)
        shapes = shapes_in(compiled_step(config, batch).as_text())
        assert any(ODD in shape for shape in shapes) == whole, layout


def test_chunked_loss_holds_one_chunk_of_logits(tiny, packed):
    batch = packed(vocabulary=ODD)
    wide = {}
    for chunks in (1, 4):
        config = run_of(tiny("llama", V=ODD), "data=8", loss_chunks=chunks)
        shapes = shapes_in(compiled_step(config, batch).as_text())
        wide[chunks] = any(32 in s and ODD in s and 64 not in s for s in shapes)
    assert wide == {1: True, 4: False}  # one sequence of 32 tokens on each device


def test_a_heads_gradient_never_exists_whole(tiny, packed):
    """A chunk of it is divided before the next one is made."""
    batch = packed(vocabulary=ODD)
    most = {}
    for chunks in (1, 4):
        config = run_of(tiny("llama", V=ODD), "fsdp=8", loss_chunks=chunks)
        text = compiled_step(config, batch).as_text()
        sums = re.findall(r"= (\S+) (?:reduce-scatter|all-reduce)\(", text)
        shapes = {shape for each in sums for shape in shapes_in(each)}
        most[chunks] = max(shape[-1] for shape in shapes if shape[:-1] in ((8,), (64,)))
    assert most[1] == ODD and most[4] < ODD  # other gradients are narrower


# --- Optimizers


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [
        ("zero1", "auto"),
        (FSDP_TENSOR, "auto"),
        pytest.param("zero1", "explicit", marks=pytest.mark.slow),
        pytest.param(FSDP_TENSOR, "explicit", marks=pytest.mark.slow),
    ],
)
def test_every_optimizer_divides_as_one_device(
    name, layout, axis_type, tiny, batches, one_device
):
    """Widths of 128, so that Adafactor's moments are factored."""
    trained = Trained(
        run_of(
            tiny("llama", D=128),
            layout,
            axis_type=axis_type,
            optimizer=OptimizerConfig(name, warmup=1),
        ),
        batches,
    )
    same(trained, one_device(name), update=BOUNDS[name])
    assert trained.program.step._cache_size() == 1


#: Lion moves by a sign, and Muon iterates: rounding near zero is magnified.
BOUNDS = {"adafactor": 1e-3, "lion": 2e-2, "muon": 2e-2}


@pytest.fixture(scope="module")
def one_device(tiny, batches):
    made = {}

    def of(name):
        if name not in made:
            optimizer = OptimizerConfig(name, warmup=1)
            config = run_of(tiny("llama", D=128), Layout({}), optimizer=optimizer)
            made[name] = Trained(config, batches)
        return made[name]

    return of


def test_clipping_divides_as_one_device(tiny, batches):
    """The norm that clips is the whole gradient's, whoever holds it."""
    optimizer = dataclasses.replace(ADAMW, clip=0.01)
    model = tiny("llama")
    one = Trained(run_of(model, Layout({}), optimizer=optimizer), batches)
    same(Trained(run_of(model, "fsdp", optimizer=optimizer), batches), one)
    norm = total(one.gradients)
    np.testing.assert_allclose(norm, 0.01, rtol=1e-3)
    assert one.metrics[0]["gradient_norm"] > 0.1  # reported as it was before the cut


def test_z_loss_is_weighed_in(tiny, batches):
    model = tiny("llama")
    plain, weighed = (
        Trained(run_of(model, "fsdp", z_loss=z), batches[:1]) for z in (0.0, 0.1)
    )
    metrics = weighed.metrics[0]
    np.testing.assert_allclose(metrics["nll"], plain.metrics[0]["loss"], rtol=1e-6)
    wanted = metrics["nll"] + 0.1 * metrics["z"]
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-6)
    assert metrics["z"] > 1.0  # log(256) squared, about 30
    path = "head_DV"
    moved = weighed.gradients[path] - plain.gradients[path]
    assert np.linalg.norm(moved) > 1e-2 * np.linalg.norm(plain.gradients[path])


def test_uncounted_targets_weigh_nothing(tiny, batches):
    """The loss is the mean over counted tokens; the rest has no gradient."""
    model, batch = tiny("llama"), dict(batches[0])
    batch["targets_BT"] = np.full_like(batch["targets_BT"], -1)
    trained = Trained(run_of(model, "data=8"), [batch])
    assert trained.metrics[0]["loss"] == 0.0
    assert total(trained.gradients) == 0.0


def test_square_norms_are_those_of_the_gradients(tiny, batches):
    trained = Trained(run_of(tiny("llama"), FSDP_TENSOR), batches[:1])
    norms = trained.metrics[0]["square_norms"]
    assert norms.keys() == dims.leaves(trained.state.params).keys()
    for path, gradient in trained.gradients.items():
        wanted = np.sum(np.square(gradient))
        np.testing.assert_allclose(norms[path], wanted, rtol=1e-4, err_msg=path)
