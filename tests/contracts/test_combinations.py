"""Axes together where `covering` does not go: a second head, optimizers' state."""

import functools

import pytest

from contracts.training import Trained, run_of, same
from scaling_lab import models, train
from scaling_lab.layouts import IllegalLayout, Layout
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.parallel.sight import Sight

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiles")]

#: Layout, microbatches. DeepSeek has two kinds of layers, latent attention and a second
#: head that looks one token further.
CASES = [
    ("fsdp=2,context=4+ring", 1),
    ("expert=2,context=2,fsdp=2", 1),
    ("stage=2,fsdp=4", 4),
    ("stage=2,fsdp=4+1f1b", 4),
    ("stage=2,data=2,tensor=2+zero_bubble", 4),
]


@pytest.fixture(scope="module")
def batches(packed):
    return [packed(16, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alone(batches):
    """Three steps on one device, once for all layouts of a model."""
    return functools.cache(
        lambda model, **fields: Trained(run_of(model, Layout({}), **fields), batches)
    )


@pytest.mark.parametrize(("layout", "microbatches"), CASES)
def test_axes_together_train_as_one_device(layout, microbatches, tiny, batches, alone):
    fields = {"batch": 16, "accumulate": microbatches}
    # One layer is dense, and stages alternate over the others.
    model = tiny("deepseek", L=3)
    found = Trained(run_of(model, layout, **fields), batches)
    same(found, alone(model, **fields))


def test_kinds_of_layers_that_take_turns_do_not_alternate(tiny):
    with pytest.raises(IllegalLayout, match=r"in runs of 1, 1.*leave \+1f1b out"):
        run_of(tiny("gemma3"), "stage=2,fsdp=4+1f1b", batch=16, accumulate=4)


def test_a_key_that_heads_share_stands_where_they_do(tiny):
    """On explicit axes what is joined to a divided array must be divided alike."""
    config = run_of(tiny("deepseek"), "fsdp=4,tensor=2", axis_type="explicit")
    program = train.make_program(config)
    program.step.trace(*program.abstract_arguments())


@pytest.mark.parametrize(
    "own", [OptimizerConfig("adafactor"), OptimizerConfig(moments="int8")]
)
@pytest.mark.parametrize("layout", ["expert=8", "data=2,expert=2,tensor=2+zero1"])
def test_what_optimizers_keep_of_experts_has_a_place(own, layout, tiny):
    """Factored moments and scales lack a width, and E and D may share no axis."""
    model = tiny("mixtral", D=256)
    train.make_program(run_of(model, layout, optimizer=own))


def test_eight_bits_keep_moments_of_what_chooses_blocks(tiny):
    model = models.seeing(tiny("llama"), Sight.parse("top=1,block=8"))
    own = OptimizerConfig(moments="int8")
    train.make_program(run_of(model, "fsdp=8", optimizer=own))
