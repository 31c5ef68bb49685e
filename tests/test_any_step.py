"""Any jitted function, judged for any machine: a model that is not ours."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import scaling_lab as lab
from scaling_lab.compile.backends import NoCompiler
from scaling_lab.record import RunRecord


class Perceptron(nnx.Module):
    """Somebody's classifier, in plain Flax: no verbs, no dims, no layout."""

    def __init__(self, width, rngs):
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.norm = nnx.LayerNorm(4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        return self.down(self.norm(jax.nn.gelu(self.up(x))))


def somebodys_step(width=256, donate=True):
    """A training step, and its abstract arguments (state, inputs, targets)."""
    graph = nnx.split(nnx.eval_shape(lambda: Perceptron(width, nnx.Rngs(0))))[0]
    optimizer = optax.adam(1e-3)

    def init():
        params = nnx.split(Perceptron(width, nnx.Rngs(0)))[1]
        return params, optimizer.init(params)

    def step(state, x, y):
        params, moments = state

        def loss(params):
            return jnp.mean(jnp.square(nnx.merge(graph, params)(x) - y))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    batch = jax.ShapeDtypeStruct((64, width), jnp.float32)
    jitted = jax.jit(step, donate_argnums=0) if donate else step
    return jitted, (jax.eval_shape(init), batch, batch)


def weights(width, kernels=2):
    """Bytes of the state: two kernels, biases and norms, each with two moments."""
    parameters = kernels * 4 * width * width + 4 * width + width + 2 * 4 * width
    return 3 * 4 * parameters


@pytest.mark.tpu
def test_somebodys_data_parallel_step_on_a_tpu(tmp_path):
    step, args = somebodys_step()
    module = tmp_path / "step.txt"
    record = lab.compile_step(
        step,
        args,
        (P(), P("data"), P("data")),
        "tpu-v5e:2x4",
        axes={"data": 8},
        module=module,
    )
    assert isinstance(record, RunRecord) and record.status == "ok", record.reason
    column = record.compiled
    assert column["fits"] and column["hbm_bytes"] == pytest.approx(15.75 * 2**30)
    batch = 2 * 64 // 8 * 256 * 4
    assert column["argument_bytes"] == pytest.approx(weights(256) + batch, rel=0.02)
    assert column["alias_bytes"] == pytest.approx(weights(256), rel=0.02), "donated"
    reduced = [row for row in column["collectives"] if row["kind"] == "all-reduce"]
    assert {axis for row in reduced for axis in row["axes"]} == {"data"}
    assert sum(row["bytes"] for row in reduced) >= weights(256) / 3
    assert column["step_seconds"] > 0 and column["by_pass"]
    assert record.asked["function"] == "step" and record.asked["mesh"] == {"data": 8}
    assert "float32[64, 256] ('data',)" in str(record.asked["arguments"])
    assert module.read_text().startswith("HloModule")


@pytest.mark.tpu
def test_shardings_of_another_mesh_are_taken_for_their_axes():
    """Weights divided by rows, a constraint inside, a plain function."""
    elsewhere = AbstractMesh((2, 4), ("data", "tensor"))

    def forward(weight, x):
        hidden = jax.lax.with_sharding_constraint(x @ weight, P("data", "tensor"))
        return jnp.tanh(hidden).sum(-1)

    args = (
        jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16),
        jax.ShapeDtypeStruct((64, 512), jnp.bfloat16),
    )
    places = (
        NamedSharding(elsewhere, P(None, "tensor")),
        NamedSharding(elsewhere, P("data")),
    )
    record = lab.compile_step(forward, args, places, "tpu-v6e:2x4")
    assert record.status == "ok", record.reason
    assert record.asked["mesh"] == {"data": 2, "tensor": 4}
    rows = record.compiled["collectives"]
    assert {(row["kind"], *row["axes"]) for row in rows} == {("all-reduce", "tensor")}
    mesh = lab.target_mesh("tpu-v6e:2x4", {"data": 2, "tensor": 4})
    own = tuple(NamedSharding(mesh, place.spec) for place in places)
    again = lab.compile_step(forward, args, own, "tpu-v6e:2x4")
    assert again.id == record.id
    assert again.compiled["collectives"] == rows


@pytest.mark.tpu
def test_a_step_that_cannot_fit_and_one_that_cannot_be():
    huge = jax.ShapeDtypeStruct((2**17, 2**17), jnp.bfloat16)
    record = lab.compile_step(lambda x: x @ x, (huge,), None, "tpu-v5e:1x1")
    assert record.status == "oom" and "GiB too much" in record.reason
    assert record.compiled["peak_bytes"] >= 2 * 2**35
    uneven = jax.ShapeDtypeStruct((7, 8), jnp.float32)
    axes = {"data": 4}
    wrong = lab.compile_step(jnp.sin, (uneven,), P("data"), "tpu-v5e:2x2", axes=axes)
    assert wrong.status == "crashed" and "divi" in wrong.reason
    assert wrong.compiled is None


@pytest.mark.tpu
def test_what_is_missing_is_said():
    args = (jax.ShapeDtypeStruct((8, 8), jnp.float32),)
    with pytest.raises(ValueError, match=r"has 4 devices and no axes.*'data': 4"):
        lab.compile_step(jnp.sin, args, P(), "tpu-v5e:2x2")
    with pytest.raises(ValueError, match="make up 8 devices .* has 4"):
        lab.compile_step(jnp.sin, args, P(), "tpu-v5e:2x2", axes={"data": 8})
    with pytest.raises(NoCompiler, match="predictions work"):
        lab.compile_step(jnp.sin, args, P(), "mi300x:1x8", axes={"data": 8})
    with pytest.raises(NoCompiler, match="JAX_NUM_CPU_DEVICES=512"):
        lab.compile_step(jnp.sin, args, P(), "cpu:512", axes={"data": 512})


def test_the_devices_of_this_process():
    step, args = somebodys_step(64, donate=False)
    record = lab.compile_step(
        step, args, (P(), P("data"), P("data")), "cpu:8", axes={"data": 8}
    )
    assert record.status == "ok", record.reason
    assert record.compiled["alias_bytes"] == 0 and record.compiled["fits"] is None
    kinds = {row["kind"] for row in record.compiled["collectives"]}
    assert kinds == {"all-reduce"} and record.asked["simulated"] is True


@pytest.mark.gpu
def test_somebodys_step_on_gpus():
    step, args = somebodys_step()
    record = lab.compile_step(
        step, args, (P(), P("data"), P("data")), "h100:2x4", axes={"data": 8}
    )
    assert record.status == "ok", record.reason
    column = record.compiled
    assert column["fits"] and column["links"] == {"data": "dcn"}
    batch = 2 * 64 // 8 * 256 * 4
    assert column["argument_bytes"] == pytest.approx(weights(256) + batch, rel=0.02)
