"""Moments kept in fewer bits: codes, who is narrowed, where they rest."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.training import Trained, close, run_of, same
from jax.sharding import PartitionSpec as P

from scaling_lab import compile_step, configure, cost, dims, layouts, optimizers, train
from scaling_lab.checkpoint import Checkpoints
from scaling_lab.cost.memory import memory
from scaling_lab.cost.runs import points_of
from scaling_lab.layouts import Layout
from scaling_lab.optimizers import OptimizerConfig, moments

pytestmark = pytest.mark.usefixtures("quick_compiles")


def spread(shape, seed=0):
    """Numbers of many sizes, as moments are."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, 2, shape))
    return jnp.asarray(random.normal(size=shape) * sizes, jnp.float32)


# --- Codes


def coded(moment, *, second):
    """``(codes, scale, moment again)`` of rows along axis 1; scales along it too."""
    blocks = moments.cut(moment, 1)
    inside = 1 + blocks.ndim - moment.ndim
    codes, scale = moments.encode(blocks, inside, second=second)
    back = moments.decode(codes, scale)
    count = moment.shape[1] // moments.block(moment.shape[1])
    scale = scale.reshape(moment.shape[0], count, *moment.shape[2:])
    return codes.reshape(moment.shape), scale, back.reshape(moment.shape)


def test_first_moments_are_squares_of_codes():
    moment = spread((4, 64, 6))
    codes, scale, back = coded(moment, second=False)
    assert codes.dtype == jnp.int8 and scale.shape == (4, 1, 6)
    np.testing.assert_array_equal(scale[:, 0], jnp.abs(moment).max(1))
    share = np.abs(moment) / scale
    # Half a code away from a root, the square is 2·root·half + half² away.
    bound = (np.sqrt(share) / 127 + 0.25 / 127**2) * scale
    assert (np.abs(back - moment) <= bound * 1.001).all()
    assert (np.sign(back) * np.sign(moment) >= 0).all()


def test_second_moments_are_fourth_powers_and_never_become_zero():
    moment = jnp.square(spread((4, 64, 6))).at[0, 0, 0].set(0.0).at[1, 0, 0].set(1e-20)
    codes, scale, back = coded(moment, second=True)
    assert codes.dtype == jnp.uint8 and codes.max() == 255
    assert back[0, 0, 0] == 0 and ((back > 0) == (moment > 0)).all()
    large = moment > 1e-4 * scale
    assert (np.abs(back / moment - 1)[large] < 0.09).all() and large.any()


@pytest.mark.parametrize("count", [1, 2, 7, 64, 108, 224])
def test_maxima_by_comparing_are_maxima(count):
    sizes = spread((3, count, 4))
    found = moments._compared(sizes, 1)
    np.testing.assert_array_equal(found, sizes.max(1, keepdims=True))


def test_rows_of_zeros():
    assert (coded(jnp.zeros((3, 4)), second=False)[2] == 0).all()


@pytest.mark.parametrize(
    ("row", "block"),
    [
        *((4096, 64), (8192, 64), (256, 64), (128, 128), (96, 96)),
        *((14336, 224), (5120, 160), (6144, 96), (768, 96)),  # whole tiles
        *((11008, 86), (13824, 108), (384 + 32, 104)),
        *((257, 257), (50257, 50257)),
    ],
)
def test_blocks_divide_rows(row, block):
    assert moments.block(row) == block
    count = row // block
    assert count * block == row and count & (count - 1) == 0
    codes, scale, _ = coded(spread((2, row, 3)), second=False)
    assert codes.shape == (2, row, 3) and scale.shape == (2, row // block, 3)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("row", [4096, 384 + 32])
def test_an_outlier_costs_its_block_and_no_more(row, second):
    moment = np.abs(np.random.default_rng(0).normal(size=(3, row, 2)))
    moment[:, 5] = 1e4
    back = coded(jnp.float32(moment), second=second)[2]
    error = np.abs(back - moment)
    size = moments.block(row)
    for start in range(0, row, size):
        part = slice(start, start + size)
        far = np.linalg.norm(error[:, part]) / np.linalg.norm(moment[:, part])
        assert far < 0.02
    rest = np.s_[:, size:]
    assert np.linalg.norm(error[rest]) < 0.02 * np.linalg.norm(moment[rest])


@pytest.mark.parametrize(
    ("row", "parts", "apart"),
    [
        *((4096, 8, True), (14336, 8, True), (768, 4, True)),
        *((1536, 8, True), (5120, 8, True)),
        *((384 + 32, 8, False), (96, 8, False), (256, 8, False)),  # across devices
    ],
)
def test_blocks_are_the_same_whoever_holds_them(row, parts, apart):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((parts,), ("x",), auto, devices=jax.devices()[:parts])
    there_and_back = jax.jit(lambda moment: coded(moment, second=True))
    moment = jnp.square(spread((16, row, 3)))
    spec = jax.sharding.PartitionSpec(None, "x")
    divided = jax.device_put(moment, jax.sharding.NamedSharding(mesh, spec))
    alone, found = there_and_back(moment), there_and_back(divided)
    np.testing.assert_array_equal(found[0], alone[0])
    np.testing.assert_array_equal(found[1], alone[1])
    np.testing.assert_allclose(found[2], alone[2], 1e-6)
    text = there_and_back.lower(divided).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute"
    moved = re.findall(rf"= \w+\[([\d,]+)\]\S* (?:{kinds})\(", text)
    assert (not moved) == apart  # and scales are all that moves
    assert all(math.prod(map(int, s.split(","))) <= alone[1].size for s in moved)


def test_rows_run_along_the_last_dim_but_one_where_that_is_as_good():
    along = {
        **{"LDNH": "H", "LNHD": "H", "LQNH": "H", "LNUD": "U"},  # of heads
        **{"LDF": "D", "LFD": "F", "LEDF": "D", "LEFD": "F", "DV": "D", "LDQ": "D"},
        **{"VD": "D", "TD": "D"},  # no token shares a scale with another
    }
    assert {letters: optimizers.along(letters) for letters in along} == along


# --- Who is narrowed

NAMES = ("adamw", "lion", "muon")


def params():
    return {
        "embed_VD": spread((32, 16)),
        "final_norm_D": spread((16,), 1),
        "layers": {
            "norm_LD": spread((2, 16), 2),
            "query_LDNH": spread((2, 16, 4, 8), 3),
            "query_bias_LNH": spread((2, 4, 8), 4),
        },
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_matrices_are_narrowed_and_nothing_else(name, kind):
    config = OptimizerConfig(name, moments=kind)
    state = jax.eval_shape(optimizers.make(config, 10).init, params())
    letters = optimizers.state_dims(state, params())
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    narrow = {"bfloat16": ("bfloat16",), "int8": ("int8", "uint8")}[kind]
    for (path, leaf), own in zip(flat, jax.tree.leaves(letters), strict=True):
        if not own:  # counters, and Muon's coefficients
            assert leaf.size <= 3 and leaf.dtype not in narrow
            continue
        assert len(own) == leaf.ndim, path
        matrix = optimizers.is_matrix(path[-1].key)
        scale = "scales" in dims.keys(path)
        assert (leaf.dtype in narrow) == (matrix and not scale), path
        if scale:
            assert own == dims.letters(path[-1].key)


@pytest.mark.parametrize(
    ("row", "placed"),
    [
        (1024, "L, F@tensor, D@fsdp"),
        (768, "L, F@tensor, D@fsdp"),
        (416, "L, F@tensor, D@fsdp"),
        (144, "L, F, D@fsdp"),
    ],
)
def test_scales_rest_beside_their_blocks_where_those_divide(row, placed, tiny):
    own = OptimizerConfig(moments="int8")
    config = run_of(tiny("llama", F=row), "fsdp=2,tensor=4", optimizer=own)
    codes, scale = (
        told
        for part in ("codes", "scales")
        for told in cost.explain(config).rows
        if {part, "mu", "down_LFD"} <= set(told.name.split("/"))
    )
    assert codes.placement == "L, F@tensor, D@fsdp" and scale.placement == placed
    layers, _, width = codes.shape
    assert scale.shape == (layers, row // moments.block(row), width)
    flat = jax.tree_util.tree_flatten_with_path(
        train.make_program(config).shardings.optimizer
    )[0]
    (spec,) = (
        sharding.spec
        for path, sharding in flat
        if {"scales", "mu", "down_LFD"} <= set(dims.keys(path))
    )
    assert (spec[1] == "tensor") == ("F@" in placed)


@pytest.mark.parametrize("name", NAMES)
def test_a_first_state_is_zeros_whose_scales_nobody_looks_for(name):
    """XLA would look for them while it compiles, and takes half a minute for 33M."""
    first = optimizers.make(OptimizerConfig(name, moments="int8"), 10).init
    assert "reduce_max" not in str(jax.make_jaxpr(first)(params()))
    wide = optimizers.make(OptimizerConfig(name), 10).init(params())
    left, right = (
        jax.tree.leaves(first(params())),
        jax.tree.leaves(moments._encode(wide)),
    )
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_an_update_in_blocks_is_the_update(name):
    config = OptimizerConfig(name, moments="int8", warmup=1)
    optimizer = optimizers.make(config, 10)

    def change(gradients, state, now):
        updates, state = optimizer.update(gradients, state, now)
        return optimizers.applied(now, updates, 1), state

    wide = {"layers": {"down_LFD": spread((2, 256, 16)), "norm_LD": spread((2, 16))}}
    wide |= {"embed_VD": spread((32, 256), 5)}
    trees = (wide, optimizer.init(wide), wide)
    found = jax.jit(optimizers.in_blocks(change))(*trees)
    for left, right in zip(
        jax.tree.leaves(found), jax.tree.leaves(jax.jit(change)(*trees)), strict=True
    ):
        assert left.shape == right.shape and left.dtype == right.dtype
        np.testing.assert_allclose(left, right, 1e-6)
    said = str(jax.make_jaxpr(optimizers.in_blocks(change))(*trees))
    assert "f32[2,4,64,16]" in said and "f32[32,4,64]" not in said


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "bound"), [("bfloat16", 0.01), ("int8", 0.12)])
def test_ten_steps_end_near_those_of_float32(name, kind, bound):
    def ended(kind):
        optimizer = optimizers.make(OptimizerConfig(name, moments=kind, warmup=1), 10)

        @jax.jit
        def step(now, state, seed):
            draw = jax.tree.map(
                lambda a: jax.random.normal(seed, a.shape) * a, params()
            )
            updates, state = optimizer.update(draw, state, now)
            return optax.apply_updates(now, updates), state

        now, state = params(), optimizer.init(params())
        for number in range(10):
            now, state = step(now, state, jax.random.key(number))
        return {p: a - dims.leaves(params())[p] for p, a in dims.leaves(now).items()}

    exact = ended("float32")
    found = ended(kind)
    close(found, exact, bound if name != "lion" else 0.5)  # a sign turns with a code
    assert any((found[path] != exact[path]).any() for path in found)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"moments": "int4"}, "unknown moments 'int4'; did you mean int8"),
        ({"moments": "bf16"}, "unknown moments 'bf16'; did you mean bfloat16"),
        ({"name": "adafactor", "moments": "int8"}, "use adamw, lion or muon"),
    ],
)
def test_what_cannot_be_narrowed(fields, said):
    with pytest.raises(ValueError, match=said):
        optimizers.make(OptimizerConfig(**fields), 10)


# --- In a run


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.mark.parametrize(
    ("name", "kind", "layout"),
    [
        ("adamw", "int8", "data=2,fsdp=2,tensor=2+zero1"),
        ("muon", "int8", "fsdp=4,tensor=2+sequence"),
        pytest.param("lion", "int8", "zero2", marks=pytest.mark.slow),
        pytest.param("adamw", "bfloat16", "fsdp=8", marks=pytest.mark.slow),
        pytest.param("adamw", "int8", "stage=2,fsdp=4", marks=pytest.mark.slow),
    ],
)
def test_every_layout_keeps_the_moments_of_one_device(
    name, kind, layout, tiny, batches, alone
):
    """A code on the border of two may fall either way: rounding, magnified."""
    own = OptimizerConfig(
        name, moments=kind, learning_rate=1e-2, warmup=1, epsilon=1e-4, clip=None
    )
    key, model = (name, kind), tiny("llama", F=512)  # two blocks
    if key not in alone:
        alone[key] = Trained(run_of(model, Layout({}), optimizer=own), batches)
    parts = 2 if "stage" in layout else 1
    config = run_of(model, layout, optimizer=own, accumulate=parts)
    found = Trained(config, batches)
    same(found, alone[key], update=2e-2)
    state = found.state.optimizer
    narrow = [a for a in jax.tree.leaves(state) if a.dtype.itemsize < 4 and a.ndim]
    assert narrow
    spread = layouts.parse(layout, 8) if "=" in layout else None
    if spread is not None:  # the largest is divided as its table says
        most = max(narrow, key=lambda a: a.size)
        shard = most.addressable_shards[0].data
        assert shard.size < most.size


def test_checkpoints_keep_narrow_moments(tmp_path, tiny, batches):
    own = OptimizerConfig(moments="int8", warmup=1)
    found = Trained(run_of(tiny("llama"), "fsdp=8", optimizer=own), batches[:1])
    with Checkpoints(tmp_path, found.config) as kept:
        kept.save(found.state)
    with Checkpoints(tmp_path, found.config) as kept:
        again = kept.restore(found.program)
    for left, right in zip(
        jax.tree.leaves(found.state), jax.tree.leaves(again), strict=True
    ):
        assert left.dtype == right.dtype and left.sharding == right.sharding
        np.testing.assert_array_equal(left, right)


def test_checkpoints_of_other_arrays_say_so(tmp_path, tiny, batches):
    """Rows once had scales without a dim of blocks."""
    own = OptimizerConfig(moments="int8", warmup=1)
    found = Trained(run_of(tiny("llama"), "fsdp=8", optimizer=own), batches[:1])
    state = dataclasses.replace(
        found.state, params=jax.tree.map(lambda a: a[None], found.state.params)
    )
    with Checkpoints(tmp_path, found.config) as kept:
        kept.save(state)
        kept.manager.wait_until_finished()
        said = "holds other arrays than this version of scaling_lab keeps"
        with pytest.raises(ValueError, match=said) as refused:
            kept.restore(found.program)
    assert str(refused.value).endswith("or start anew with another --out")


def test_memory_counts_them():
    held, told = {}, {}
    for kind in moments.KINDS:
        config = configure(
            size="8b", target="h100:1x8", layout="fsdp=8", batch=8, moments=kind
        )
        held[kind] = float(memory(points_of([config])).optimizer_bytes[0])
        told[kind] = cost.explain(config).bytes_by()["optimizer"]
    for bytes_ in (held, told):
        assert bytes_["bfloat16"] / bytes_["float32"] == pytest.approx(1 / 2, rel=0.01)
        share = (1 + 4 / moments.BLOCK) / 4
        # Most blocks are larger than the smallest.
        assert bytes_["int8"] / bytes_["float32"] == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("tpu-v6e:2x4", marks=pytest.mark.tpu),
        pytest.param("h100:1x8", marks=pytest.mark.gpu),
    ],
)
def test_an_update_writes_no_moment_in_float32(target):
    """It is one loop over blocks; of a reshape in between a compiler makes several."""
    own = OptimizerConfig(moments="int8", warmup=1)
    optimizer = optimizers.make(own, 10)
    shapes = {"up_LDF": (32, 4096, 14336), "down_LFD": (32, 14336, 4096)}
    params = {
        "layers": {
            name: jax.ShapeDtypeStruct(shape, jnp.float32)
            for name, shape in shapes.items()
        }
    }

    def change(gradients, state, params, scale):
        gradients = jax.tree.map(lambda gradient: gradient * scale, gradients)
        updates, state = optimizer.update(gradients, state, params)
        return state, optimizers.applied(params, updates, 1)

    state = jax.eval_shape(optimizer.init, params)
    step = jax.jit(optimizers.in_blocks(change), donate_argnums=(1, 2))
    spread = {"up_LDF": P(None, "fsdp"), "down_LFD": P(None, None, "fsdp")}
    placed = jax.tree.map_with_path(
        lambda path, leaf: spread.get(getattr(path[-1], "key", ""), P()),
        (params, state, params, P()),
    )
    args = (params, state, params, jax.ShapeDtypeStruct((), jnp.float32))
    found = compile_step(step, args, placed, target, axes={"fsdp": 8})
    assert found.status == "ok", found.reason
    largest = max(math.prod(shape) for shape in shapes.values())
    assert found.compiled["temporary_bytes"] < 4 * largest / 8 / 4
    assert not found.compiled["collectives"]
