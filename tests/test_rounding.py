"""Parameters in bfloat16, rounded by chance; gradients summed in a chosen precision."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.training import Trained, close, run_of, same

from scaling_lab import configure, cost, dims, optimizers, train
from scaling_lab.config import validate
from scaling_lab.cost.memory import memory
from scaling_lab.cost.runs import points_of
from scaling_lab.layouts import Layout
from scaling_lab.optimizers import rounding

pytestmark = pytest.mark.usefixtures("quick_compiles")


# --- Rounding


def test_rounded_is_a_neighbour_and_right_in_the_mean():
    x = jnp.asarray([1.0, 1.0 + 2**-10, -3.3, 1e-30, 0.0], jnp.float32)
    keys = jax.random.split(jax.random.key(1), 4096)
    found = jax.vmap(lambda key: rounding.rounded(x, key))(keys).astype(jnp.float32)
    spacing = jnp.exp2(jnp.floor(jnp.log2(jnp.abs(jnp.where(x == 0, 1, x))))) * 2**-7
    assert (jnp.abs(found - x[None]) < spacing[None]).all()
    assert (found[:, 0] == 1.0).all() and (found[:, 4] == 0.0).all()
    up = float((found[:, 1] > 1).mean())  # an eighth of the way to the next
    assert abs(up - 1 / 8) < 0.02
    assert (jnp.abs(found.mean(0) - x) < 0.05 * spacing).all()


def test_what_is_no_number_stays_so():
    x = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    found = rounding.rounded(x, jax.random.key(0))
    assert jnp.isinf(found[:2]).all() and found[1] < 0 and jnp.isnan(found[2])


def test_small_steps_arrive():
    """Each is a hundredth of the spacing at 1: to the nearest, all would be lost."""
    params = {"gate_DF": jnp.ones((64, 64), jnp.bfloat16), "norm_D": jnp.ones(64)}
    update = {"gate_DF": jnp.full((64, 64), 2**-7 / 100), "norm_D": jnp.zeros(64)}
    apply = jax.jit(optimizers.applied)
    for step in range(100):
        params = apply(params, update, jnp.asarray(step))
    assert params["gate_DF"].dtype == jnp.bfloat16
    assert params["norm_D"].dtype == jnp.float32
    mean = float(params["gate_DF"].astype(jnp.float32).mean())
    assert mean == pytest.approx(1 + 2**-7, rel=1e-3)


def test_chance_differs_by_step_and_by_name():
    params = {"a_DF": jnp.ones((32, 32), jnp.bfloat16)}
    params["b_DF"] = params["a_DF"]
    update = {name: jnp.full((32, 32), 2**-8) for name in params}
    first, next_ = (optimizers.applied(params, update, jnp.asarray(s)) for s in (0, 1))
    assert (first["a_DF"] != first["b_DF"]).any()
    assert (first["a_DF"] != next_["a_DF"]).any()


# --- In a run


@pytest.fixture(scope="module")
def alone(tiny, batches):
    return Trained(run_of(tiny("llama"), Layout({}), parameters="bfloat16"), batches)


@pytest.mark.parametrize(("parameters", "alike"), [("float32", True), ("bfloat16", 0)])
def test_microbatches_are_summed_by_the_chance_of_their_step(
    parameters, alike, tiny, batches
):
    """Of the same weights and texts, which only the number of the step tells apart."""
    config = run_of(tiny("llama"), Layout({}), parameters=parameters, accumulate=4)
    program = train.make_program(config)

    def norm(step):
        state = dataclasses.replace(program.init(), step=jnp.asarray(step))
        return float(program.step(state, program.put(batches[0]))[1]["gradient_norm"])

    assert (norm(0) == norm(7)) == alike
    assert norm(0) == norm(0)
    assert norm(0) == pytest.approx(norm(7), rel=1e-2)


def test_a_sum_of_small_numbers_arrives():
    total = {"gate_DF": jnp.ones((64, 64), jnp.bfloat16)}
    more = {"gate_DF": jnp.full((64, 64), 2**-7 / 100, jnp.bfloat16)}
    add = jax.jit(optimizers.summed)
    for key in jax.random.split(jax.random.key(0), 100):
        total = add(total, more, key)
    assert total["gate_DF"].dtype == jnp.bfloat16
    mean = float(total["gate_DF"].astype(jnp.float32).mean())
    assert mean == pytest.approx(1 + 2**-7, rel=1e-3)


@pytest.mark.parametrize(
    "layout",
    [
        "data=2,fsdp=2,tensor=2+zero1",
        pytest.param("fsdp=4,tensor=2+sequence", marks=pytest.mark.slow),
        pytest.param("stage=2,fsdp=4", marks=pytest.mark.slow),
    ],
)
def test_every_layout_rounds_as_one_device(layout, tiny, batches, alone):
    """Chance is the same; where two layouts' sums differ by rounding, a number in
    thousands falls to the other side."""
    parts = 2 if "stage" in layout else 1
    config = run_of(tiny("llama"), layout, parameters="bfloat16", accumulate=parts)
    found = Trained(config, batches)
    same(_wide(found), _wide(alone), loss=2e-4, gradient=5e-3, update=3e-2)
    for path, leaf in dims.leaves(found.state.params).items():
        matrix = optimizers.is_matrix(path.rpartition("/")[2])
        assert leaf.dtype == (jnp.bfloat16 if matrix else jnp.float32)
    moments = [a for a in jax.tree.leaves(found.state.optimizer) if a.ndim]
    assert all(moment.dtype == jnp.float32 for moment in moments)


def _wide(trained):
    for held in (trained.before, trained.after, trained.gradients):
        held.update({k: np.asarray(v, np.float32) for k, v in held.items()})
    return trained


# --- Sums over devices


@pytest.mark.parametrize(
    ("precision", "reduce", "type_"),
    [("bfloat16", "float32", "f32"), ("float32", "bfloat16", "bf16")],
)
def test_gradients_are_summed_in_what_was_asked(precision, reduce, type_, tiny):
    """In the program as it is handed to the compiler: XLA:CPU widens sums by itself."""
    summed = {}
    for asked in (None, reduce):
        config = run_of(
            tiny("llama"), "fsdp=8", precision=precision, reduce=asked, stack="scan"
        )
        program = train.make_program(config)
        text = program.step.lower(*program.abstract_arguments()).as_text()
        found = re.findall(
            r'"stablehlo.reduce_scatter".*?\}\) : \(tensor<[\dx]*(\w+)>', text, re.S
        )
        assert len(found) == 8  # seven weights of a layer, and the head
        summed[asked] = set(found)
    assert summed == {None: {_TYPE[precision]}, reduce: {type_}}


_TYPE = {"float32": "f32", "bfloat16": "bf16"}


@pytest.mark.parametrize("layout", ["data=2,fsdp=2,tensor=2"])
def test_sums_in_bfloat16_stay_near(layout, tiny, batches):
    exact = Trained(run_of(tiny("llama"), layout), batches)
    rough = Trained(run_of(tiny("llama"), layout, reduce="bfloat16"), batches)
    close(rough.gradients, exact.gradients, 0.01)
    gate = "layers/gate_LDF"
    assert (rough.gradients[gate] != exact.gradients[gate]).any()
    assert rough.metrics[0]["loss"] == exact.metrics[0]["loss"]


# --- On paper


def test_memory_and_traffic_count_them():
    words = {"size": "8b", "target": "h100:8x8", "layout": "fsdp=64", "batch": 64}
    plain, narrow = (configure(**words, parameters=p) for p in rounding.RESTING)
    held = [memory(points_of([config])) for config in (plain, narrow)]
    for column in ("parameter_bytes", "gradient_bytes"):
        assert getattr(held[1], column) == pytest.approx(getattr(held[0], column) / 2)
    assert held[1].optimizer_bytes == held[0].optimizer_bytes
    told = [cost.explain(config).bytes_by()["parameter"] for config in (plain, narrow)]
    assert told[1] == pytest.approx(told[0] / 2, rel=0.01)

    def reduced(reduce):
        rows = cost.explain(configure(**words, reduce=reduce)).collectives()
        return sum(row["bytes"] for row in rows if row["kind"] == "reduce-scatter")

    assert reduced("bfloat16") == reduced(None)
    assert reduced("float32") == pytest.approx(2 * reduced(None), rel=0.1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"parameters": "bf16"}, "unknown parameters 'bf16'; did you mean bfloat16"),
        ({"reduce": "float16"}, "unknown reduce 'float16'; did you mean bfloat16"),
    ],
)
def test_unknown_names(fields, said):
    with pytest.raises(ValueError, match=said):
        validate(configure(target="cpu:8", layout="fsdp=8", **fields))
