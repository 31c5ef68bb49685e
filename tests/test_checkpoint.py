"""What is saved is what comes back, bit for bit, and only to the run that saved it."""

import dataclasses

import jax
import numpy as np
import pytest

from scaling_lab import layouts
from scaling_lab.checkpoint import Checkpoints
from scaling_lab.config import RunConfig, validate
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.train import fit, make_program

pytestmark = pytest.mark.usefixtures("quick_compiles")

STEPS = 5


def run_of(model, layout, **changes):
    fields = {"batch": 8, "length": 32, "steps": STEPS} | changes
    config = RunConfig(model, layouts.parse(layout, 8), **fields)
    validate(config)
    return config


def host(state):
    return jax.tree.map(np.asarray, jax.device_get(state))


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, host(found), host(wanted))


@pytest.fixture(scope="module")
def made(tiny):
    """A program whose steps are used by every test here, on two axes."""
    config = run_of(tiny("llama"), "fsdp=4,tensor=2+sequence")
    return config, make_program(config)


@pytest.fixture(scope="module")
def four(packed):
    return [packed(seed=seed) for seed in range(STEPS)]


def test_a_resumed_run_is_the_uninterrupted_one(made, four, tmp_path):
    config, program = made
    losses = []
    whole = fit(program, program.init(), four, lambda n, m, _: losses.append(m["loss"]))
    with Checkpoints(tmp_path, config) as checkpoints:
        state = fit(program, program.init(), four[:2])
        checkpoints.save(state)
        before = host(state)
        # Going on donates the saved arrays; what is written must not change with them.
        fit(program, state, four[2:])
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest == 2
        restored = checkpoints.restore(program)
    same(restored, before)
    where = jax.tree.map(lambda leaf: leaf.sharding, restored)
    assert where == program.shardings
    resumed = []
    end = fit(program, restored, four[2:], lambda n, m, _: resumed.append(m["loss"]))
    assert resumed == losses[2:]
    same(end, whole)


def test_the_newest_are_kept(made, four, tmp_path):
    config, program = made
    state = program.init()
    with Checkpoints(tmp_path, config, keep=2) as checkpoints:
        for batch in four[:4]:
            state = fit(program, state, [batch])
            checkpoints.save(state)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["3", "4"]


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_every_optimizers_state_comes_back(name, tiny, packed, tmp_path):
    optimizer = OptimizerConfig(name)
    config = run_of(tiny("gpt2", L=1), "data=2,fsdp=4", optimizer=optimizer)
    program = make_program(config)
    state = program.init()
    # Every number a different one, so that two arrays cannot change places unseen.
    count = iter(range(10_000))
    state = jax.tree.map(
        lambda leaf: jax.device_put(leaf + next(count), leaf.sharding), state
    )
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path, config) as checkpoints:
        same(checkpoints.restore(program), state)


def test_nothing_to_resume_from_is_said(made, tmp_path):
    config, program = made
    with Checkpoints(tmp_path / "none", config) as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(FileNotFoundError, match="no checkpoint in .*none"):
            checkpoints.restore(program)


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    config, program = made
    with Checkpoints(folder, config) as checkpoints:
        checkpoints.save(program.init())
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, ["seed: None there, 1 here"]),
        ({"batch": 16, "z_loss": 0.1}, ["batch: None there, 16 here", "z_loss: None"]),
        ({"optimizer": OptimizerConfig(learning_rate=1.0)}, ["optimizer: ", "1.0"]),
        ({"precision": "bfloat16"}, ["precision: ", "'bfloat16' here"]),
        ({"layout": layouts.parse("fsdp=8", 8)}, ["layout: ", "'fsdp': 8"]),
    ],
)
def test_another_runs_checkpoint_is_refused_by_field(made, saved, changes, words):
    config, program = made
    other = dataclasses.replace(config, **changes)
    with Checkpoints(saved, other) as checkpoints:
        with pytest.raises(ValueError, match="is of another run") as caught:
            checkpoints.restore(program)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).endswith("Use the same options, or another --out")


def test_another_model_is_refused(saved, tiny):
    other = run_of(tiny("llama", F=256), "fsdp=4,tensor=2+sequence")
    with Checkpoints(saved, other) as checkpoints:
        with pytest.raises(ValueError, match="model: .*'F': 128.*'F': 256"):
            checkpoints.restore(make_program(other))


def test_what_changes_no_result_may_differ(made, saved):
    config, program = made
    layout = dataclasses.replace(config.layout, name="another name")
    longer = dataclasses.replace(
        config, steps=99, remat="full", evaluate_batches=0, size="x", layout=layout
    )
    with Checkpoints(saved, longer) as checkpoints:
        same(checkpoints.restore(program), program.init())


def test_a_half_written_step_is_not_seen(made, tmp_path):
    config, program = made
    state = program.init()
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(state)
    # What a process that dies while writing leaves behind.
    half = tmp_path / "1.orbax-checkpoint-tmp-7"
    (half / "state").mkdir(parents=True)
    (half / "state" / "manifest.ocdbt").write_bytes(b"half")
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest == 0
        same(checkpoints.restore(program), state)
