"""Experts' rows in kernels of GPUs and TPUs: the same products, and no needless work.

The kernels run here by interpretation, which fills what nothing has written with NaN.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.training import Trained, run_of, same
from test_experts import EXPERTS, GROUPED, TOKENS, E, close, trained

import scaling_lab as lab
from scaling_lab import compile as compiler
from scaling_lab.layouts import Layout
from scaling_lab.models.ops import swiglu
from scaling_lab.parallel import experts
from scaling_lab.parallel.experts import products, tiles
from scaling_lab.train import program

pytestmark = pytest.mark.usefixtures("quick_compiles")

INTERPRETED = functools.partial(experts.tiled, interpret=True)
ON_A_TPU = functools.partial(experts.grouped, interpret=True)


@pytest.mark.parametrize(
    ("mechanism", "layout", "routing"),
    [
        (None, None, TOKENS),
        ("all_to_all", "expert=2,context=2,fsdp=2", EXPERTS),
        ("ring_of_experts", "expert=4,tensor=2+sequence", GROUPED),
    ],
)
def test_tiles_of_rows_are_the_oracle(mechanism, layout, routing):
    found = trained(layout, mechanism, routing, group_with=INTERPRETED)
    close(found, trained(None, "dense", routing))


def test_one_expert_hot_and_the_others_empty():
    found = trained("expert=8", None, TOKENS, hot=(3, 5), group_with=INTERPRETED)
    close(found, trained(None, "dense", TOKENS, hot=(3, 5)))
    empty = [e for e in range(E) if e not in (3, 5)]
    for weight in found[1][2].values():
        assert np.all(weight[empty] == 0.0) and np.any(weight[3] != 0.0)


def test_in_float32_a_tpus_products_are_the_oracle():
    found = trained("expert=4,fsdp=2", None, TOKENS, group_with=ON_A_TPU)
    close(found, trained(None, "dense", TOKENS))


@pytest.mark.parametrize("group_with", [INTERPRETED, ON_A_TPU])
@pytest.mark.parametrize("hot", [(), (3, 5)])
def test_bfloat16_is_within_two_percent(group_with, hot):
    narrow = {"compute": jnp.bfloat16, "hot": hot}
    found = trained(None, None, TOKENS, group_with=group_with, **narrow)
    close(found, trained(None, "dense", TOKENS, **narrow), 0.02)


@pytest.mark.slow
def test_three_steps_are_those_of_one_device(tiny, batches, monkeypatch):
    model = tiny("mixtral", L=1)
    one = Trained(run_of(model, Layout({})), batches)
    habits = program._habits

    def of_a_gpu(platform):
        return habits(platform) | {"group_with": INTERPRETED}

    monkeypatch.setattr(program, "_habits", of_a_gpu)
    same(Trained(run_of(model, "expert=4,fsdp=2"), batches), one)


# --- No more work than rows


def groups(rows, room, held):
    """Shapes of Mixtral 8x7B's experts on a device, and a function of their gradients.

    Args:
      rows: that come in the mean. room: rows there is room for. held: experts.
    """
    shapes = {
        "gate_EDF": (held, D, F),
        "up_EDF": (held, D, F),
        "down_EFD": (held, F, D),
    }
    weights = {k: jax.ShapeDtypeStruct(s, jnp.bfloat16) for k, s in shapes.items()}

    def total(group_with, rows_CD, size_E, weights):
        grouped = products.Groups(rows_CD, size_E, rows)
        made_CD = group_with(swiglu, grouped, weights, "ffn/experts")
        return jnp.sum(made_CD.astype(jnp.float32))

    arrays = (
        jax.ShapeDtypeStruct((room, D), jnp.bfloat16),
        jax.ShapeDtypeStruct((held,), jnp.int32),
        weights,
    )
    return arrays, total


D, F = 4096, 14336
#: All of 8192 tokens' rows here; and what others send to the one expert held.
PLACES = [(16384, 16384, 8), (16384, 65536, 1)]


def told(text):
    """FLOPs that the kernels of a GPU's program say."""
    return sum(float(number) for number in re.findall(r"22flops\S+ \\22(\d+)", text))


@pytest.mark.parametrize(("rows", "room", "held"), PLACES)
def test_a_gpus_program_multiplies_rows_and_no_more(rows, room, held):
    """Three products, each once forward and twice backward, and 6 % for borders."""
    arrays, total = groups(rows, room, held)
    value = jax.value_and_grad(functools.partial(total, experts.tiled), (0, 2))
    text = jax.jit(value).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 9 and "stablehlo.dot" not in text
    own = 9 * 2 * rows * D * F
    assert own <= told(text) <= 1.06 * own


@pytest.mark.tpu
@pytest.mark.parametrize("place", PLACES)
def test_a_tpus_program_multiplies_rows_and_no_more(place):
    assert products_on_a_tpu(experts.grouped, place) == pytest.approx(9, rel=0.01)


def of_stages(stages, kind):
    """Shapes of a stack of small experts, one for each stage, and their gradients."""

    def stacked(*shape, kind=kind):
        return jax.ShapeDtypeStruct((stages, *shape), kind)

    weights = {
        "gate_EDF": stacked(4, 128, 256),
        "up_EDF": stacked(4, 128, 256),
        "down_EFD": stacked(4, 256, 128),
    }
    arrays = (stacked(512, 128), stacked(4, kind=jnp.int32), weights)
    _, total = groups(512, 512, 4)
    value = jax.value_and_grad(functools.partial(total, experts.grouped), (0, 2))
    return jax.vmap(value), arrays


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32])
def test_stages_products_of_rows_stand_alone(kind):
    """A TPU's compiler has none of a stack of them."""
    value, arrays = of_stages(2, kind)
    found = str(jax.make_jaxpr(value)(*arrays))
    dims = re.findall(r"dot_dimension_numbers=\(+(.*)", found)
    assert dims and all("(), ()" in said for said in dims)


@pytest.mark.tpu
@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32])
def test_a_tpu_multiplies_rows_of_stages(kind):
    value, arrays = of_stages(1, kind)
    found = lab.compile_step(jax.jit(value), arrays, None, "tpu-v5e:1x1")
    assert found.status == "ok", found.reason


@pytest.mark.tpu
def test_the_tpus_own_gradient_of_weights_multiplies_by_every_expert():
    """Where that has changed, `megablox` has had its day."""
    found = products_on_a_tpu(experts.ragged, PLACES[0])
    assert found == pytest.approx(6 + 3 * 8, rel=0.01)


def products_on_a_tpu(group_with, place):
    """As many as one of all rows, by what its compiled program multiplies."""
    arrays, total = groups(*place)
    value = jax.value_and_grad(functools.partial(total, group_with), (0, 2))
    found = lab.compile_step(jax.jit(value), arrays, None, "tpu-v5e:1x1")
    return found.compiled["flops"] / (2 * place[0] * D * F)


def test_the_compilers_product_multiplies_by_every_expert():
    """Why it is not used there; where that has changed, look at this again."""
    arrays, total = groups(*PLACES[0])
    value = jax.jit(
        jax.value_and_grad(functools.partial(total, experts.ragged), (0, 2))
    )
    text = value.lower(*arrays).compile().as_text()
    found = compiler.read(text, {}, None)
    assert found["flops"] >= 8 * 9 * 2 * 16384 * D * F * 0.99


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize(("rows", "room", "held"), PLACES)
def test_tiles_are_made_where_rows_stand(rows, room, held, hot):
    """What the kernels say is what they do: their tiles, counted."""
    random = np.random.default_rng(0)
    size_E = random.multinomial(rows, np.ones(held) / held)
    if hot:
        size_E = np.eye(held, dtype=int)[-1] * rows
    visits = tiles._visits(jnp.asarray(size_E), room, tiles.ROWS)
    made = np.asarray(visits.high_M > visits.low_M)
    assert np.sum(np.asarray(visits.high_M - visits.low_M)[made]) == rows
    assert made.sum() * tiles.ROWS <= rows + held * tiles.ROWS
    place_M, e_M = np.asarray(visits.first_M) // tiles.ROWS, np.asarray(visits.expert_M)
    assert len(set(zip(place_M[made], e_M[made], strict=True))) == made.sum()
