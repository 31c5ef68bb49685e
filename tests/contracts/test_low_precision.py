"""Products in 8 bits: codes, scales, gradients, and every layout as one device."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from contracts.training import Trained, close, run_of, same
from scaling_lab import configure, train
from scaling_lab.compile import _shapes
from scaling_lab.compile._module import Module
from scaling_lab.compile.backends import backend_of
from scaling_lab.config import validate
from scaling_lab.hardware import parse_target
from scaling_lab.layouts import Layout
from scaling_lab.parallel import equations, low_precision
from scaling_lab.parallel.low_precision import E4M3, E5M2, INT8, RECIPES, Coded

pytestmark = pytest.mark.usefixtures("quick_compiles")


def drawn(shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# --- Codes


@pytest.mark.parametrize("code", [INT8, E4M3, E5M2])
def test_codes_times_scale_are_the_array(code):
    """Half a step: of 127 at the row's largest, of 2^-3 or 2^-2 of each number."""
    x = drawn((16, 64)) * jnp.logspace(-6, 6, 16)[:, None]
    codes, scale = low_precision.encode(x, (1,), code)
    assert codes.dtype == code.dtype and scale.shape == (16, 1)
    error = np.abs(codes.astype(jnp.float32) * scale - x)
    most = np.abs(x).max(1, keepdims=True)
    if code is INT8:
        assert (error <= most / 127 / 2 * 1.001).all()
        assert (np.abs(codes).max(1) == 127).all()
    else:
        step = {"float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}[code.dtype]
        small = {"float8_e4m3fn": 2**-9, "float8_e5m2": 2**-16}[code.dtype]
        assert (error <= np.maximum(step * np.abs(x), small * scale)).all()
        top = np.abs(codes.astype(jnp.float32)).max(1)
        assert (top <= code.largest).all() and (top > code.largest / 2.3).all()
        assert (np.frexp(scale)[0] == 0.5).all()  # powers of two


@pytest.mark.parametrize("code", [INT8, E4M3])
def test_zeros_and_what_is_no_number(code):
    x = jnp.asarray([[0.0, 0.0], [1.0, jnp.inf], [jnp.nan, 1.0], [1.0, 2.0]])
    codes, scale = low_precision.encode(x, (1,), code)
    back = codes.astype(jnp.float32) * scale
    assert (back[0] == 0).all() and np.isfinite(back[3]).all()
    product = low_precision.contract(
        Coded(RECIPES["int8" if code is INT8 else "float8"]),
        "BD,DF->BF", x, jnp.ones((2, 3)),
    )  # fmt: skip
    assert np.isfinite(product[0]).all() and not np.isfinite(product[1:3]).any()


# --- Products

EQUATIONS = ["BTD,DF->BTF", "BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTNH,NHU->BTNU"]
SIZES = dict(zip("BTDFNHU", (2, 8, 32, 24, 4, 16, 8), strict=True))


@pytest.mark.parametrize("precision", RECIPES)
@pytest.mark.parametrize("equation", EQUATIONS)
def test_product_and_gradients_are_those_of_the_codes(precision, equation):
    """What the docstring says is done, written out; and near the exact product."""
    (left, right), output = equations.parse(equation)
    shapes = [[SIZES[letter] for letter in term] for term in (left, right, output)]
    x, weight, gradient = (drawn(s, seed) for seed, s in enumerate(shapes))
    recipe = RECIPES[precision]

    def rounded(term, array, result, code):
        summed = tuple(i for i, letter in enumerate(term) if letter not in result)
        codes, scale = low_precision.encode(array, summed, code)
        return codes.astype(jnp.float32) * scale

    def wanted(first, second, codes):
        (a, b), out = equations.parse(f"{first[0]},{second[0]}->{first[2]}")
        ops = first[1], second[1]
        if codes is not None:
            ops = rounded(a, ops[0], out, codes[0]), rounded(b, ops[1], out, codes[1])
        return jnp.einsum(f"{a},{b}->{out}", *ops)

    found, pull = jax.vjp(
        lambda x, w: low_precision.contract(Coded(recipe), equation, x, w), x, weight
    )
    pairs = [
        (found, wanted((left, x, output), (right, weight), recipe.forward)),
        (pull(gradient)[0],
         wanted((output, gradient, left), (right, weight), recipe.backward)),
        (pull(gradient)[1],
         wanted((left, x, right), (output, gradient), recipe.weight)),
    ]  # fmt: skip
    for found, exact in pairs:
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    plain = jnp.einsum(equation, x, weight)
    error = jnp.linalg.norm(pairs[0][0] - plain) / jnp.linalg.norm(plain)
    assert 1e-4 < error < {"int8": 0.02, "float8": 0.06}[precision]


@pytest.mark.parametrize("precision", RECIPES)
def test_units_multiply_the_same_codes(precision):
    x, weight = drawn((2, 8, 32)), drawn((32, 24), 1)
    units = (low_precision.native, low_precision.widened)
    found = [
        low_precision.contract(
            Coded(RECIPES[precision], unit), "BTD,DF->BTF", x, weight
        )
        for unit in units
    ]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "can"),
    [
        ("BTD,DF->BTF", True),
        ("BTNH,BSNH->BTNS", False),
        ("BTD,D->BTD", False),
        ("BTD,DF->BT", False),
    ],
)
def test_what_is_multiplied_in_8_bits(equation, can):
    assert low_precision.applies(equation) == can


# --- Layouts


@pytest.fixture
def in_float32(monkeypatch):
    """Everything but the codes in float32, so that layouts can be compared closely."""
    made = train.program.make_placement

    def placement(config, devices=None):
        return dataclasses.replace(made(config, devices), compute=jnp.float32)

    monkeypatch.setattr(train.program, "make_placement", placement)


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.fixture(scope="module")
def drawn_batches(packed):
    """In whose first step no code of ours lies on the border of two."""
    return [packed(seed=seed) for seed in (10, 11, 12)]


@pytest.mark.parametrize("precision", RECIPES)
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", "fsdp=4,tensor=2+sequence"),
        ("llama", "data=2,fsdp=2,context=2+zero1"),
        ("llama", "stage=2,data=2,tensor=2"),
        pytest.param("llama", "fsdp=2,stage=2,data=2+1f1b", marks=pytest.mark.slow),
        pytest.param("mixtral", "expert=4,fsdp=2", marks=pytest.mark.slow),
        pytest.param("gemma3", "fsdp=4,tensor=2+sequence", marks=pytest.mark.slow),
        pytest.param("deepseek", "expert=4,fsdp=2", marks=pytest.mark.slow),
    ],
)
def test_every_layout_multiplies_the_codes_of_one_device(
    precision, family, layout, tiny, drawn_batches, in_float32, alone
):
    """Scales are of whole rows and columns. What is left is a code on the border of
    two, which float32's own rounding may tip, under any layout: one in thousands, more
    with every step that parameters have gone apart (one that tips in the first step
    has turned the third gradient's norm by 3 %, the second logits' `z` by 0.07 %)."""
    parts = {"accumulate": 2} if "stage" in layout else {}
    model = tiny(family, L=4) if "stage" in layout else tiny(family)
    key = (precision, family, bool(parts))
    if key not in alone:
        config = run_of(model, Layout({}), precision=precision, **parts)
        alone[key] = Trained(config, drawn_batches)
    found = Trained(run_of(model, layout, precision=precision, **parts), drawn_batches)
    first = [trained.metrics[0]["loss"] for trained in (found, alone[key])]
    np.testing.assert_allclose(*first, rtol=1e-5)
    close(found.gradients, alone[key].gradients, 2e-2)
    same(found, alone[key], loss=1e-3, gradient=5e-2, update=1e-1)


def test_bfloat16_around_the_codes(tiny, batches):
    """The loss of 8 bits stays within 1% of float32's, gradients within 15%."""
    model = tiny("llama")
    exact = Trained(run_of(model, Layout({})), batches)
    for precision, layout in itertools.product(RECIPES, ("fsdp_tensor", "zero1")):
        rough = Trained(run_of(model, layout, precision=precision), batches)
        for left, right in zip(rough.metrics, exact.metrics, strict=True):
            np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-2)
        close(rough.gradients, exact.gradients, 0.15)
        for leaf in jax.tree.leaves(rough.state):
            assert leaf.dtype in (jnp.float32, jnp.int32)


@pytest.mark.parametrize(
    ("precision", "type_", "times"), [("int8", "s8", 2), ("float8", "f8e4m3fn", 3)]
)
def test_the_step_multiplies_in_8_bits(precision, type_, times, tiny, batches):
    """Seven weights of a layer, each in so many of its three products; no others."""
    config = run_of(tiny("llama"), "fsdp=8", precision=precision, stack="scan")
    program = train.make_program(config)
    text = program.step.lower(*program.abstract_arguments()).as_text()
    narrow = re.findall(rf"dot_general.*\(tensor<[\dx]*{_MLIR[type_]}>", text)
    either = re.findall(r"dot_general.*\(tensor<[\dx]*(?:i8|f8E\w+)>", text)
    assert narrow and len(either) == 7 * times


_MLIR = {"s8": "i8", "f8e4m3fn": "f8E4M3FN"}


# --- Targets


@pytest.mark.parametrize(
    ("target", "precision", "said"),
    [
        ("tpu-v5p:2x2x2", "fp8", "no faster than 16 bits .459 TFLOP/s.; it has int8"),
        ("a100:1x8", "fp8", "a100 has no unit for it; it has int8, bfloat16"),
        ("v100:1x8", "fp8", "v100 has no unit for it; it has float32"),
        ("tpu-v4:2x2x1", "int8", "no faster than 16 bits .275 .*; it has bfloat16"),
        ("tpu-7x:2x2x1", "int8", "has no unit for it; it has float8, bfloat16"),
        ("h100:1x8", "int4", "unknown precision 'int4'; did you mean int8"),
    ],
)
def test_a_precision_that_the_target_lacks(target, precision, said):
    config = configure(target=target, layout="fsdp=8", precision=precision)
    with pytest.raises(ValueError, match=said):
        validate(config)


@pytest.mark.parametrize(
    ("target", "precision"),
    [("h100:1x8", "fp8"), ("h100:1x8", "int8"), ("a100:1x8", "int8"),
     ("tpu-v5p:2x2x2", "int8"), ("tpu-v6e:2x4", "int8"), ("cpu:8", "fp8")],
)  # fmt: skip
def test_a_precision_that_the_target_has(target, precision):
    config = configure(target=target, layout="fsdp=8", precision=precision)
    validate(config)
    assert config.precision in RECIPES and config.arithmetic == "bfloat16"


def test_explicit_axes_are_refused(tiny):
    with pytest.raises(ValueError, match="use --axis-type auto"):
        run_of(tiny("llama"), "fsdp=8", precision="int8", axis_type="explicit")


def products_of(target, precision):
    """Products of a layer and its gradients in the target's own module."""
    found = parse_target(target)
    backend = backend_of(found)
    device = SingleDeviceSharding(backend.devices(found)[0])

    def step(gate_DF, x_BTD):
        low = Coded(RECIPES[precision])
        out, back = jax.vjp(
            lambda x, w: low_precision.contract(low, "BTD,DF->BTF", x, w),
            x_BTD,
            gate_DF,
        )
        return back(jnp.tanh(out))

    shapes = [(512, 1024), (1, 1024, 512)]
    arguments = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=device) for s in shapes]
    module = Module(jax.jit(step).lower(*arguments).compile().as_text())
    return [
        {_shapes.arrays(body[name].shape)[0].type for name in each.operands}
        for body in module.computations.values()
        for each in body.values()
        if each.opcode in ("dot", "convolution")
    ]


@pytest.mark.parametrize("target", ["tpu-v5e:2x2", "tpu-v5p:2x2x1", "tpu-v6e:2x2"])
@pytest.mark.tpu
def test_a_tpu_multiplies_integers(target):
    types = products_of(target, "int8")
    assert types.count({"s8"}) == 2 and {"bf16"} in types  # the weight's gradient


@pytest.mark.gpu
def test_a_gpu_multiplies_eight_bits():
    types = products_of("h100:1x1", "float8")
    assert {"f8e4m3fn", "f8e5m2"} in types
