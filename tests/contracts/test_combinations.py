"""Axes together: masks, experts, divided sequences and stages of several families."""

import pytest

from contracts.training import Trained, run_of, same
from scaling_lab.layouts import IllegalLayout, Layout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiles")]

#: family, layout, microbatches. Gemma 3 has windows, DeepSeek two kinds of layers,
#: latent attention and a second head that looks one token further.
CASES = [
    ("gemma3", "fsdp=2,context=2,tensor=2+sequence+ring", 1),
    ("gemma3", "context=4,tensor=2+sequence+ulysses", 1),
    ("deepseek", "fsdp=2,context=4+ring", 1),
    ("deepseek", "fsdp=2,context=4+ulysses", 1),
    ("mixtral", "expert=2,context=2,tensor=2+ulysses", 1),
    ("deepseek", "expert=2,context=2,fsdp=2", 1),
    ("mixtral", "expert=2,context=2,fsdp=2+ring_of_experts", 1),
    ("mixtral", "stage=2,expert=2,fsdp=2", 4),
    ("deepseek", "stage=2,fsdp=4", 4),
]


@pytest.mark.parametrize(
    ("family", "layout", "microbatches"), CASES, ids=[f"{f}-{t}" for f, t, _ in CASES]
)
def test_axes_together_train_as_one_device(family, layout, microbatches, tiny, packed):
    batches = [packed(16, seed=seed) for seed in range(3)]
    fields = {"batch": 16, "accumulate": microbatches}
    model = tiny(family)
    found = Trained(run_of(model, layout, **fields), batches)
    same(found, Trained(run_of(model, Layout({}), **fields), batches))


@pytest.mark.parametrize("family", ["deepseek", "mixtral"])
def test_experts_do_not_alternate_yet(family, tiny):
    with pytest.raises(IllegalLayout, match="leave .1f1b out"):
        run_of(tiny(family), "stage=2,fsdp=4+1f1b", batch=16, accumulate=4)


def test_two_kinds_of_layers_do_not_alternate(tiny, packed):
    config = run_of(tiny("gemma3"), "stage=2,fsdp=4+1f1b", batch=16, accumulate=4)
    with pytest.raises(ValueError, match="2 kinds of layers"):
        Trained(config, [packed(16)])
