"""muP of every family: the coordinate check, its factors, and equality over layouts.

The check is that of Yang et al. 2022 (appendix D.1): over widths, how far activations
move in a few steps. With muP it is as far at every width; without, it grows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_lab import config as configs
from scaling_lab import dims, models, train
from scaling_lab.config import mup
from scaling_lab.layouts import Layout, Placement
from scaling_lab.optimizers import OptimizerConfig
from tests.contracts.training import Trained, run_of, same

pytestmark = pytest.mark.usefixtures("quick_compiles")

WIDTHS, STEPS = (64, 128, 256), 4
#: Of the logarithm of a move by that of the width: flat, and what is not.
FLAT, STEEP = 0.25, 0.5
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


def activations(run, params, batch):
    """What the model says, by verb: the last layer's."""

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

    return {name: np.asarray(a) for name, a in forward(params, batch).items()}


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
    before = activations(run, state.params, batches[0])
    for _ in range(STEPS):
        state, _ = program.step(state, program.put(batches[0]))
    after = activations(run, state.params, batches[0])
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


@pytest.mark.parametrize("family", models.families())
def test_coordinate_check(family, few):
    found = slopes({width: moves(family, width, few) for width in WIDTHS})
    print(family, "mup", found)
    plain = slopes({width: moves(family, width, few, True) for width in WIDTHS})
    print(family, "standard", plain)
    assert max(found.values()) < FLAT, found
    assert plain["logits"] > STEEP, plain
