"""What every model family must do, found by its file."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab import dims, models
from scaling_lab.layouts import Layout, Placement
from scaling_lab.models import ops

pytestmark = pytest.mark.usefixtures("quick_compiles")

SIZES = [(f, s) for f in models.families() for s in models.family(f).SIZES]

#: Counts of the released weights, where their publishers or model cards give them.
PUBLISHED = {
    ("llama", "2-7b"): 6_738_415_616,
    ("mixtral", "8x7b"): 46_702_792_704,
    ("mixtral", "8x22b"): 140_620_634_112,
    ("qwen3", "0.6b"): 596_049_920,
    ("qwen3", "1.7b"): 1_720_574_976,
    ("qwen3", "4b"): 4_022_468_096,
    ("qwen3", "8b"): 8_190_735_360,
    ("qwen3", "14b"): 14_768_307_200,
    ("qwen3", "32b"): 32_762_123_264,
    ("qwen3_moe", "30b-a3b"): 30_532_122_624,
    ("qwen3_moe", "235b-a22b"): 235_093_634_560,
    ("gemma3", "1b"): 999_885_952,
    # Of the released 4,300,079,472, 12,187,325,040 and 27,432,406,640 all but the
    # images' encoder (416,866,032) and its projection (1152·D + 1152).
    ("gemma3", "4b"): 3_880_263_168,
    ("gemma3", "12b"): 11_766_034_176,
    ("gemma3", "27b"): 27_009_346_304,
    ("deepseek", "v2-lite"): 15_706_484_224,
    ("deepseek", "v3"): 671_026_419_200,
    ("llama", "2-13b"): 13_015_864_320,
    ("llama", "2-70b"): 68_976_648_192,
    ("llama", "1b"): 1_235_814_400,
    ("llama", "8b"): 8_030_261_248,
    ("llama", "70b"): 70_553_706_496,
    ("llama", "405b"): 405_853_388_800,
    ("gpt2", "124m"): 124_439_808,
    ("gpt2", "355m"): 354_823_168,
    ("gpt2", "774m"): 774_030_080,
    ("gpt2", "1.5b"): 1_557_611_200,
}
WITHOUT_NORMS = {
    ("llama", "2-13b"): 13_015_449_600,
    ("llama", "70b"): 70_552_387_584,
}


def shapes_of(config):
    init = functools.partial(models.family_of(config).init, config)
    return dims.leaves(jax.eval_shape(init, jax.random.key(0)))


def count(shapes):
    return sum(leaf.size for leaf in shapes.values())


@functools.cache
def jitted_init(config):
    return jax.jit(functools.partial(models.family_of(config).init, config))


def batch_of(tokens_BT, segments_BT=None, start=0):
    b, t = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(start, start + t)[None], (b, t))
    if segments_BT is None:
        segments_BT = jnp.zeros_like(positions_BT)
    return {
        "tokens_BT": tokens_BT,
        "positions_BT": positions_BT,
        "segments_BT": segments_BT,
    }


@pytest.fixture(scope="module", params=models.families())
def case(request, tiny):
    """A family's file, its tiny config and parameters."""
    family = models.family(request.param)
    config = tiny(request.param)
    return family, config, jitted_init(config)(jax.random.key(1))


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_shapes_follow_names(family, size):
    config = models.size(family, size)
    for path, leaf in shapes_of(config).items():
        letters = dims.check(path.rpartition("/")[2], leaf.shape)
        assert letters.startswith("L") == path.startswith("layers"), path
        for letter, length in zip(letters, leaf.shape, strict=True):
            assert length in models.widths(config, letter), f"{path}: {letter}"
        assert leaf.dtype == jnp.float32, path


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_parameter_count_is_the_formula(family, size):
    config = models.size(family, size)
    assert count(shapes_of(config)) == models.family(family).parameter_count(config)


@pytest.mark.parametrize("key", PUBLISHED, ids="-".join)
def test_parameter_count_is_the_published_one(key):
    assert count(shapes_of(models.size(*key))) == PUBLISHED[key]


@pytest.mark.parametrize("key", WITHOUT_NORMS, ids="-".join)
def test_parameter_count_without_norms(key):
    shapes = shapes_of(models.size(*key))
    weights = {path: leaf for path, leaf in shapes.items() if "norm" not in path}
    assert count(weights) == WITHOUT_NORMS[key]


# --- Who sees whom


@dataclasses.dataclass(frozen=True)
class Nudged(Placement):
    """Adds something to the embeddings, so that they have a gradient."""

    nudge_BTD: jax.Array | None = None

    def take(self, table, indices_BT, *, name, dims="VD"):
        found_BTD = super().take(table, indices_BT, name=name, dims=dims)
        return found_BTD + self.nudge_BTD if name == "embed" else found_BTD


def influence_TS(family, config, params, batch):
    """How much the hidden state at T depends on the input at S, in one sequence."""
    length = batch["tokens_BT"].shape[1]
    direction_D = jax.random.normal(jax.random.key(2), (config.D,))

    def seen_T(nudge_BTD):
        place = Nudged(Layout({}), nudge_BTD=nudge_BTD)
        return family.hidden(config, params, batch, place).hidden_BTD[0] @ direction_D

    jacobian_TBSD = jax.jit(jax.jacrev(seen_T))(jnp.zeros((1, length, config.D)))
    return np.abs(np.asarray(jacobian_TBSD[:, 0])).sum(-1)


def test_causal_inside_documents_and_blind_across_them(case):
    family, config, params = case
    segments_BT = jnp.array([[0] * 5 + [1] * 4 + [2] * 3])
    tokens_BT = jax.random.randint(jax.random.key(3), (1, 12), 0, config.V)
    found_TS = influence_TS(family, config, params, batch_of(tokens_BT, segments_BT))
    segment_T = np.asarray(segments_BT[0])
    allowed_TS = np.tri(12, dtype=bool) & (segment_T[:, None] == segment_T[None])
    assert np.all(found_TS[~allowed_TS] == 0.0)
    assert np.all(found_TS[allowed_TS] > 0.0)


def test_prefill_and_decode_are_the_forward_pass(case):
    family, config, params = case
    tokens_BT = jax.random.randint(jax.random.key(4), (2, 10), 0, config.V)
    place = Placement(Layout({}))

    @jax.jit
    def hidden(batch, cache=None):
        return family.hidden(config, params, batch, place, cache)

    whole_BTD = hidden(batch_of(tokens_BT)).hidden_BTD
    cache = ops.empty_cache(config, 2, 12, jnp.float32)  # two slots never written
    parts, start = [], 0
    for size in (6, 1, 1, 2):
        piece = batch_of(tokens_BT[:, start : start + size], start=start)
        output = hidden(piece, cache)
        parts.append(output.hidden_BTD)
        cache, start = output.cache, start + size
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole_BTD, atol=2e-5)


# --- What the verbs are told


@dataclasses.dataclass(frozen=True)
class Listening(Placement):
    """Writes down the weights each verb was given and the functions it was handed."""

    used: set = dataclasses.field(default_factory=set)
    handed: list = dataclasses.field(default_factory=list)
    verbs: list = dataclasses.field(default_factory=lambda: [[]])

    def einsum(self, equation, *operands, name, bias=None):
        terms, output = equation.split("->")
        word = self._heard(name)
        self.used.update(f"{word}_{t}" for t in terms.split(",") if "B" not in t)
        if bias is not None:
            self.used.add(f"{word}_bias_{output[-bias.ndim :]}")
        return super().einsum(equation, *operands, name=name, bias=bias)

    def take(self, table, indices_BT, *, name, dims="VD"):
        self.used.add(f"{self._heard(name)}_{dims}")
        return super().take(table, indices_BT, name=name, dims=dims)

    def attend(self, *arrays, name):
        self._heard(name)
        return super().attend(*arrays, name=name)

    def experts(self, h_BTD, router_DE, weights, expert, *, name, **rest):
        self._heard(name)
        bias = {"router_bias_E"} if rest.get("bias_E") is not None else set()
        self.used.update({"router_DE", *weights}, bias)
        self.handed.append(expert)
        return super().experts(h_BTD, router_DE, weights, expert, name=name, **rest)

    def stack(self, segments, x_BTD, per_batch, cache=None):
        self.handed.extend(segment.block for segment in segments)
        caches, auxes, after = cache or [None] * len(segments), [], []
        for segment, own in zip(segments, caches, strict=True):
            self.verbs.append([])
            own = None if own is None else [own]
            x_BTD, aux, left = super().stack([segment], x_BTD, per_batch, own)
            auxes += aux
            after += left or []
        self.verbs.append([])
        return x_BTD, auxes, after or None

    def _heard(self, name):
        self.verbs[-1].append(name)
        return name.rpartition("/")[2]


def listen(family, config, params):
    place = Listening(Layout({}))
    batch = batch_of(jnp.zeros((1, 8), jnp.int32))
    batch["targets_BT"] = batch["tokens_BT"]

    def heard(params):
        output = family.hidden(config, params, batch, place)
        more = models.further(config, params, batch, place, output)
        return output.hidden_BTD, more[0].hidden_BTD if more else None

    jax.eval_shape(heard, params)
    return place


def test_every_weight_is_named_by_its_verb(case):
    family, config, params = case
    place = listen(family, config, params)
    names = {
        dims.unstacked(name) if path.startswith("layers") else name
        for path in dims.leaves(params)
        for name in [path.rpartition("/")[2]]
    }
    assert place.used == names - {"head_DV"}  # the head's verb is the loss


def test_verbs_have_distinct_names(case):
    # The layers are scanned, so each verb of a block is heard once for each segment;
    # like verbs of unlike layers share a name.
    for verbs in listen(*case).verbs:
        assert len(verbs) == len(set(verbs)), verbs


def arrays_in(value, seen=None):
    """Every array a function carries: its closure, defaults, bound self, arguments."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type):
        return []
    seen.add(id(value))
    if isinstance(value, jax.Array | np.ndarray):
        return [value]
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    elif isinstance(value, functools.partial):
        inside = [value.func, value.args, value.keywords]
    elif callable(value) and hasattr(value, "__code__"):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = [*cells, value.__defaults__ or (), value.__kwdefaults__ or {}]
    else:
        inside = [getattr(value, "__func__", None), getattr(value, "__self__", None)]
        inside += list(getattr(value, "__dict__", {}).values())
    return [array for item in inside for array in arrays_in(item, seen)]


def test_blocks_close_over_no_arrays(case):
    handed = listen(*case).handed
    assert handed
    for function in handed:
        assert not arrays_in(function), function


def test_a_closed_over_array_would_be_found():
    table = jnp.ones(2)
    inner = functools.partial(lambda x, scale=table: x * scale, 1)
    assert len(arrays_in(lambda x: inner(x))) == 1
    assert len(arrays_in({"a": [functools.partial(abs, table)]})) == 1
    assert not arrays_in(functools.partial(lambda x: x, 1))


def test_initialisation_is_a_function_of_the_key(case):
    _, config, params = case
    again = dims.leaves(jitted_init(config)(jax.random.key(1)))
    other = dims.leaves(jitted_init(config)(jax.random.key(2)))
    for path, leaf in dims.leaves(params).items():
        np.testing.assert_array_equal(leaf, again[path], path)
        if np.ptp(leaf):
            assert np.any(leaf != other[path]), path
