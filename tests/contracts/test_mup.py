"""muP of every family: the coordinate check, its factors, and equality over layouts.

The check is that of Yang et al. 2022 (appendix D.1): over widths, how far activations
move in a few steps. With muP it is as far at every width; without, it grows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab import config as configs
from scaling_lab import dims, models, optimizers, train
from scaling_lab.config import mup
from scaling_lab.layouts import Layout, Placement
from scaling_lab.models import ops
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.train import sample
from tests.contracts.training import Trained, run_of, same

pytestmark = pytest.mark.usefixtures("quick_compiles")

WIDTHS, STEPS = (64, 256), 3
#: Of the logarithm of a move by that of the width: flat, and what is not.
FLAT, STEEP = 0.4, 0.6
#: Every step as large as the first, so that what is measured is the step's scale.
ADAMW = OptimizerConfig(
    learning_rate=1e-2, warmup=0, schedule="constant", weight_decay=0.0, clip=None
)


@dataclasses.dataclass(frozen=True)
class Heard(Placement):
    """Keeps what every contraction and the residual stream say, layers unrolled."""

    said: dict = dataclasses.field(default_factory=dict)

    def einsum(self, equation, *operands, name, bias=None):
        result = super().einsum(equation, *operands, name=name, bias=bias)
        if "norm" not in name:  # a norm's output is of one size whatever comes in
            self.said.setdefault(name, []).append(result)
        return result

    def cross_entropy(self, hidden_BTD, head_DV, targets_BT, *, name):
        logits_BTV = self.head_scale * hidden_BTD @ head_DV
        self.said.setdefault("logits", []).append(logits_BTV)
        return super().cross_entropy(hidden_BTD, head_DV, targets_BT, name=name)


def speaking(run):
    """What the model says of a batch, by verb: the last layer's."""

    @jax.jit
    def forward(params, batch):
        scales = train.make_placement(run)
        place = Heard(
            Layout({}),
            unroll=True,
            attend_scale=scales.attend_scale,
            head_scale=scales.head_scale,
        )
        train.step.token_loss(run, place, params, batch)
        return {name: arrays[-1] for name, arrays in place.said.items()}

    return forward


def moves(family, width, batches, standard=False):
    """How far each activation moved in a few steps, root mean square."""
    toy = models.size(family, "toy")
    base = dataclasses.replace(models.resized(toy, width=64, layers=2), V=64)
    if hasattr(base, "embed_width"):
        base = dataclasses.replace(base, embed_width=64)
    model = models.resized(base, width=width)
    if standard and hasattr(base, "embed_width"):
        model = dataclasses.replace(model, embed_width=None)
    run = run_of(model, Layout({}), optimizer=ADAMW, steps=STEPS)
    run = dataclasses.replace(run, mup=None if standard else base)
    program = train.make_program(run)
    state = program.init()
    said = speaking(run)
    before = jax.device_get(said(state.params, batches[0]))
    for _ in range(STEPS):
        state, _ = program.step(state, program.put(batches[0]))
    after = jax.device_get(said(state.params, batches[0]))
    return {
        name: float(np.sqrt(np.mean(np.square(after[name] - before[name]))))
        for name in before
    }


def slopes(found):
    """Of every activation the slope of its move by the width, on logarithms."""
    x = np.log(list(found))
    return {
        name: float(np.polyfit(x, np.log([found[w][name] for w in found]), 1)[0])
        for name in found[WIDTHS[0]]
    }


@pytest.fixture(scope="module")
def few(packed):
    return [packed(batch=4, length=16, vocabulary=64)]


#: The others take their time to compile.
QUICK = ("gpt2", "llama")
FAMILIES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
    for name in models.families()
]


@pytest.mark.parametrize("family", FAMILIES)
def test_coordinate_check(family, few):
    found = slopes({width: moves(family, width, few) for width in WIDTHS})
    plain = slopes({width: moves(family, width, few, True) for width in WIDTHS})
    assert max(found.values()) < FLAT, found
    assert plain["logits"] > STEEP, plain


# --- What is multiplied by what


@pytest.mark.parametrize(
    ("name", "read", "kind"),
    [
        ("embed_VD", "V", "input"),
        ("position_TD", "T", "input"),
        ("gate_LDF", "D", "hidden"),
        ("gate_LEDF", "D", "hidden"),
        ("out_LNHD", "NH", "hidden"),
        ("query_LDNH", "D", "hidden"),
        ("value_LRNU", "R", "hidden"),
        ("query_bias_LNH", "", "input"),
        ("router_LDE", "D", "output"),
        ("router_bias_LE", "", "input"),
        ("query_norm_LH", "", "input"),
        ("key_pool_LIH", "I", "input"),
    ],
)
def test_names_tell_what_a_parameter_is(name, read, kind):
    assert (mup.reads(name), mup.kind(name)) == (read, kind)


def of_width(family, width, base, tiny, **changes):
    small = tiny(family)
    model = models.resized(small, width=width)
    return run_of(model, "data=1", mup=models.resized(small, width=base), **changes)


def test_factors_are_the_table_s(tiny):
    run = of_width("mixtral", 256, 64, tiny)
    drawn = dims.leaves(run.initial(jax.random.key(0)))
    plain = dataclasses.replace(run, mup=None)
    plain = dims.leaves(plain.initial(jax.random.key(0)))
    rates = mup.rates(run.model, run.mup)
    table = {
        "embed_VD": (1, 1),
        "head_DV": (1, 1),
        "layers/attention_norm_LD": (1, 1),
        "layers/query_LDNH": (1 / 2, 1 / 4),
        "layers/out_LNHD": (1 / 2, 1 / 4),
        "layers/down_LEFD": (1 / 2, 1 / 4),
        "layers/router_LDE": (1 / 4, 1 / 4),
    }
    for path, (first, rate) in table.items():
        np.testing.assert_allclose(drawn[path], first * plain[path], 1e-6)
        assert rates[path] == rate
    assert mup.multipliers(run.model, run.mup) == {"attend": 1.0, "head": 1 / 4}


def test_scores_are_divided_by_the_head_s_width(tiny):
    base = tiny("llama", H=8)
    wide = dataclasses.replace(base, H=32)
    assert mup.multipliers(wide, base)["attend"] == (8 / 32) ** 0.5
    place = train.make_placement(run_of(wide, "data=1", mup=base))
    q_BTNH = jax.random.normal(jax.random.key(0), (1, 4, 8, 32))
    mask = wide.mask.over({"segments_BT": jnp.zeros((1, 4), jnp.int32)} | positions())
    found = place.attend(q_BTNH, q_BTNH, q_BTNH, mask, name="attention/attend")
    plain = Placement(Layout({})).attend(
        q_BTNH / 2, q_BTNH, q_BTNH, mask, name="attention/attend"
    )
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def positions():
    return {"positions_BT": jnp.arange(4)[None]}


def test_at_the_base_s_sizes_nothing_changes(batches, tiny):
    run = of_width("llama", 64, 64, tiny)
    plain = Trained(dataclasses.replace(run, mup=None), batches)
    found = Trained(run, batches)
    for path, array in plain.after.items():
        np.testing.assert_array_equal(found.after[path], array, path)


def test_a_rate_moves_the_step_and_not_its_decay(tiny):
    run = of_width("llama", 128, 64, tiny)
    still = {"layers": {"gate_LDF": jnp.zeros((2, 4, 4))}}
    params = jax.tree.map(lambda a: a + 1, still)
    optimizer = dataclasses.replace(run.optimizer, warmup=0, weight_decay=0.5)
    for gradient, share in ((still, 1.0), (params, 0.5)):
        ends = [
            step_of(optimizer, params, gradient, rates)
            for rates in (None, {"layers/gate_LDF": 0.5})
        ]
        decay = 1 - 0.5 * optimizer.learning_rate
        moved = [end - decay for end in ends]
        np.testing.assert_allclose(moved[1], share * moved[0], rtol=1e-3, atol=1e-7)


def step_of(config, params, gradients, rates):
    optimizer = optimizers.make(config, 10, rates)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return np.asarray(params["layers"]["gate_LDF"] + updates["layers"]["gate_LDF"])


def test_what_is_sampled_from_is_what_the_loss_saw(tiny):
    run = of_width("gpt2", 128, 32, tiny, batch=1, length=8)
    place = train.make_placement(run)
    params = run.initial(jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (1, 8), 0, run.model.V)
    batch = {
        "tokens_BT": tokens_BT,
        "targets_BT": tokens_BT,
        "positions_BT": jnp.arange(8)[None],
        "segments_BT": jnp.zeros((1, 8), jnp.int32),
    }
    nll_BT = train.step.token_loss(run, place, params, batch).nll_BT
    cache = ops.empty_cache(run.model, 1, 8, jnp.float32)
    logits_BTV, _ = sample._next_logits(run, place, params, tokens_BT, 0, cache)
    said = -jax.nn.log_softmax(logits_BTV[0, -1])[tokens_BT[0, -1]]
    np.testing.assert_allclose(said, nll_BT[0, -1], rtol=1e-5)
    assert abs(float(nll_BT[0, -1]) - np.log(run.model.V)) > 1e-3


# --- Over layouts


CASES = [
    ("llama", "fsdp=2,context=2,tensor=2+sequence+ring", {}),
    ("gpt2", "fsdp_tensor", {}),
    ("mixtral", "expert=4,fsdp=2", {}),
    ("llama", "stage=2,data=2,tensor=2+1f1b", {"accumulate": 2}),
    ("llama", "fsdp_tensor", {"axis_type": "explicit"}),
]


@pytest.mark.parametrize(("family", "layout", "words"), CASES)
def test_equal_to_one_device(family, layout, words, batches, tiny):
    one = of_width(family, 64, 32, tiny)
    assert mup.multipliers(one.model, one.mup)["head"] == 1 / 2
    run = run_of(one.model, layout, mup=one.mup, **words)
    same(Trained(run, batches), trained_alone(family, one, batches))


KEPT = {}


def trained_alone(family, one, batches):
    if family not in KEPT:
        KEPT[family] = Trained(one, batches)
    return KEPT[family]


# --- What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"mup": "64", "optimizer": "muon"}, "optimizer of mup 'muon'"),
        ({"mup": "60"}, "nearest widths: 48, 64"),
        ({"mup": "7b"}, "unknown size of llama '7b'"),
        ({"width": 100}, "width=100"),
    ],
)
def test_what_cannot_be_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        configs.validate(configs.configure(layout="data=1", **words))


def test_the_base_is_of_the_same_family(tiny):
    run = run_of(tiny("llama"), "data=1")
    with pytest.raises(ValueError, match="the base is a gpt2, the model a llama"):
        configs.validate(dataclasses.replace(run, mup=tiny("gpt2")))


def test_one_dial_makes_a_family_of_widths_and_of_depths():
    runs = [
        configs.configure(size="toy", layout="data=1", width=w, layers=n, mup="128")
        for w, n in ((64, 2), (256, 2), (256, 8))
    ]
    sizes = [(r.model.D, r.model.N, r.model.K, r.model.F, r.model.L) for r in runs]
    assert sizes == [(64, 4, 2, 192, 2), (256, 16, 8, 768, 2), (256, 16, 8, 768, 8)]
    assert {r.model.H for r in runs} == {16}
    assert {(r.mup.D, r.mup.F) for r in runs} == {(128, 384)}
    back = configs.RunConfig.from_json(runs[1].to_json())
    assert back == runs[1] and back.id == runs[1].id
