"""Optimizer state in the host's memory: as one device, and really away."""

import jax
import pytest

from contracts.training import Trained, run_of, same
from scaling_lab import configure
from scaling_lab.config import validate
from scaling_lab.cost.memory import memory
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.hardware import chip
from scaling_lab.layouts import IllegalLayout, Layout
from scaling_lab.optimizers import OptimizerConfig

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize(
    ("family", "layout", "name", "moments"),
    [
        ("llama", "fsdp=4,tensor=2", "adamw", "float32"),
        pytest.param(
            "llama", "data=4,tensor=2+zero1", "muon", "int8", marks=pytest.mark.slow
        ),
        pytest.param("deepseek", "fsdp=8", "adamw", "int8", marks=pytest.mark.slow),
    ],
)
def test_what_comes_from_the_host_is_updated_as_ever(
    family, layout, name, moments, tiny, batches
):
    own = OptimizerConfig(
        name, moments=moments, learning_rate=1e-2, warmup=1, epsilon=1e-4, clip=None
    )
    alone = Trained(run_of(tiny(family), Layout({}), optimizer=own), batches)
    config = run_of(tiny(family), f"{layout}+offload_optimizer", optimizer=own)
    found = Trained(config, batches)
    same(found, alone, update=2e-2 if moments == "int8" or name != "adamw" else 1e-3)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(found.state.params)}
    assert kinds == {"device"}
    state = jax.tree.leaves(found.state.optimizer)
    large = sum(leaf.size for leaf in state if leaf.ndim)
    away = sum(a.size for a in state if a.sharding.memory_kind == "pinned_host")
    assert away > 0.99 * large


def test_a_step_that_is_not_sound_leaves_it_as_it_was(tiny, batches):
    own = OptimizerConfig(learning_rate=3e38, weight_decay=3e38, warmup=1)
    config = run_of(tiny("llama"), "fsdp=8+offload_optimizer", optimizer=own)
    found = Trained(config, batches)
    assert not jax.numpy.isfinite(found.metrics[-1]["loss"])
    count = [a for a in jax.tree.leaves(found.state.optimizer) if not a.ndim]
    assert {int(a) for a in count} == {1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"layout": "stage=2,fsdp=4+offload_optimizer"}, "stages divide layers"),
        (
            {"layout": "fsdp=8+offload_optimizer", "axis_type": "explicit"},
            "use --axis-type auto",
        ),
        (
            {"layout": "fsdp=8+offload_optimizer", "optimizer": "adafactor"},
            "adafactor's state is small",
        ),
        ({"layout": "fsdp=8+offload_optimiser"}, "did you mean offload_optimizer"),
    ],
)
def test_what_cannot_be_away(words, said):
    with pytest.raises(IllegalLayout, match=said):
        validate(configure(target="cpu:8", **words))


def test_memory_and_time_on_paper():
    words = {"size": "8b", "target": "tpu-v6e:2x4", "batch": 8}
    here, away = (
        points_of([configure(layout=f"fsdp=8{more}", **words)])
        for more in ("", "+offload_optimizer")
    )
    saved = memory(here).hbm_bytes[0] - memory(away).hbm_bytes[0]
    assert saved == pytest.approx(8 * 8.03e9 / 8 * 30 / 32, rel=0.01)
    waits = predict(away).optimizer_seconds[0] - predict(here).optimizer_seconds[0]
    assert waits == pytest.approx(
        2 * 8.03e9 / chip("tpu-v6e").host_bytes_per_second, 0.3
    )
