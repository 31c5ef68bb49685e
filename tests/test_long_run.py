"""A long run leaves a record, checkpoints, evaluations and text, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scaling_lab import cost, record
from scaling_lab.checkpoint import Checkpoints
from scaling_lab.config import configure, with_data
from scaling_lab.sweep import LongRun, run_training
from scaling_lab.train import NotFinite, bits_per_byte, make_program

pytestmark = pytest.mark.usefixtures("quick_compiles")

WORDS = {
    "layers": 1,
    "length": 32,
    "batch": 8,
    "steps": 6,
    "evaluate_batches": 1,
    "target": "cpu:1",
    "layout": "ddp",
}


@pytest.fixture
def words(text):
    return {**WORDS, "data": (str(text),)}


def plan_of(out, **changes):
    return LongRun(**{"out": out, "sample": 0, "save_every": 0, **changes})


@pytest.fixture(scope="module")
def whole(text, cache, tmp_path_factory):
    """A run from its first step to its last, with everything on."""
    out = tmp_path_factory.mktemp("whole")
    plan = plan_of(out, save_every=2, evaluate_every=3, sample=8, prompt="12 squ")
    heard = []
    config = configure(**WORDS, data=(str(text),))
    trained = run_training(
        config, plan, cache_dir=cache, watch=lambda event, facts: heard.append(event)
    )
    return trained, out, heard


def test_the_record_is_complete(whole):
    trained, out, _ = whole
    (row,) = record.read(out)
    assert row == trained.record
    assert (row.status, row.reason) == ("ok", None)
    losses = row.measured["loss"]
    assert losses["steps"] == [1, 2, 3, 4, 5, 6]
    assert losses["final"] == losses["values"][-1] < losses["values"][0]
    assert row.measured["step_seconds"]["repeats"] == 4
    assert row.measured["tokens_per_second"] > 0
    assert row.compiled["peak_bytes"] > 0 and row.compiled["compile_seconds"] > 0
    assert row.predicted["bytes_per_device"]["parameter"] > 0
    config = trained.program.config
    assert row.asked["params"] == cost.parameters(config)
    assert row.id == config.id


def test_evaluations_are_of_the_steps_they_are_named_after(whole, cache):
    trained, _, heard = whole
    found = trained.record.measured["held_out"]
    assert found["steps"] == [3, 6]
    assert found["final"] == found["bits_per_byte"][-1]
    _, dataset = with_data(trained.program.config, cache)
    stream = dataset.stream("held_out", 8, 32, 0)
    bits = bits_per_byte(
        trained.program,
        trained.state.params,
        [stream.batch(0)],
        stream.bytes_per_token_V,
    )
    assert found["final"] == pytest.approx(bits)
    assert heard.count("evaluated") == 2 and heard.count("step") == 6
    assert heard[0] == "preparing" and heard[-1] == "sampling"


def test_checkpoints_are_of_the_steps_they_are_named_after(whole, text, cache):
    trained, out, _ = whole
    names = [p.name for p in (out / "checkpoints").iterdir() if p.name.isdigit()]
    assert sorted(names) == ["4", "6"]
    with Checkpoints(out / "checkpoints", trained.program.config) as checkpoints:
        restored = checkpoints.restore(trained.program)
    jax.tree.map(np.testing.assert_array_equal, restored, trained.state)


def test_the_sample_goes_on_from_the_prompt(whole):
    trained = whole[0]
    assert trained.text.startswith("12 squ")
    assert len(trained.text) > len("12 squ")


def test_a_folder_with_a_checkpoint_wants_resume(whole, words, cache):
    _, out, _ = whole
    with pytest.raises(ValueError, match="holds a checkpoint of step 6; say --resume"):
        run_training(configure(**words), plan_of(out), cache_dir=cache)
    assert len(record.read(out)) == 1


def test_resuming_another_run_is_refused(whole, words, cache):
    _, out, _ = whole
    other = configure(**{**words, "seed": 5})
    with pytest.raises(ValueError, match="of another run; seed: None there, 5 here"):
        run_training(other, plan_of(out, resume=True), cache_dir=cache)


def test_resuming_a_finished_run_keeps_its_record(whole, words, cache):
    trained, out, _ = whole
    again = run_training(configure(**words), plan_of(out, resume=True), cache_dir=cache)
    assert int(again.state.step) == 6
    jax.tree.map(np.testing.assert_array_equal, again.state, trained.state)
    assert record.read(out) == [trained.record]


class Stopped(Exception):
    pass


def stop_at(step):
    def watch(event, facts):
        if event == "step" and facts["number"] == step:
            raise Stopped

    return watch


def test_a_stopped_run_goes_on_where_it_was(whole, words, cache, tmp_path):
    trained = whole[0]
    plan = plan_of(tmp_path, save_every=2, evaluate_every=0)
    config = configure(**words)
    with pytest.raises(Stopped):
        run_training(config, plan, cache_dir=cache, watch=stop_at(5))
    (stopped,) = record.read(tmp_path)
    assert stopped.status == "crashed"
    assert stopped.reason.startswith("stopped after step 5 of 6: Stopped")
    resume = plan_of(tmp_path, save_every=2, evaluate_every=0, resume=True)
    heard = []
    again = run_training(
        config, resume, cache_dir=cache, watch=lambda e, f: heard.append((e, f))
    )
    assert ("resuming", {"step": 4}) in heard
    wanted = trained.record.measured["loss"]["values"][4:]
    assert again.record.measured["loss"]["values"] == wanted
    assert again.record.measured["loss"]["steps"] == [5, 6]
    assert again.record.status == "ok"
    jax.tree.map(np.testing.assert_array_equal, again.state, trained.state)


def test_a_run_stopped_at_its_first_step_is_not_ok(words, cache, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Stopped

    monkeypatch.setattr("scaling_lab.sweep.long_run.fit", stop)
    with pytest.raises(Stopped):
        run_training(configure(**words), plan_of(tmp_path), cache_dir=cache)
    (row,) = record.read(tmp_path)
    assert row.status == "crashed"
    assert row.reason.startswith("stopped after step 0 of 6: Stopped")


def test_a_run_that_explodes_leaves_its_record_and_a_sound_state(
    words, cache, tmp_path
):
    wild = {**words, "learning_rate": 1e30, "warmup": 1, "clip": None}
    config = configure(**wild)
    plan = plan_of(tmp_path, save_every=2)
    with pytest.raises(NotFinite, match="step .*first bad tensor"):
        run_training(config, plan, cache_dir=cache)
    (row,) = record.read(tmp_path)
    assert row.status == "crashed" and "first bad tensor" in row.reason
    assert row.measured["loss"]["values"]
    config, _ = with_data(config, cache)
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        if checkpoints.latest is not None:
            state = checkpoints.restore(make_program(config))
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_an_illegal_run_leaves_nothing(words, cache, tmp_path):
    config = configure(**{**words, "layout": "fsdp=16"})
    with pytest.raises(ValueError, match="--target cpu:16"):
        run_training(config, plan_of(tmp_path / "out"), cache_dir=cache)
    assert not (tmp_path / "out").exists()


def test_one_step_has_no_time_to_tell(words, cache, tmp_path):
    config = configure(**{**words, "steps": 1})
    plan = plan_of(tmp_path, evaluate_every=0, sample=3)
    trained = run_training(config, plan, cache_dir=cache)
    assert trained.record.measured["step_seconds"] is None
    assert trained.record.measured["tokens_per_second"] is None
    assert trained.record.measured["held_out"]["steps"] == [1]
    assert trained.text.startswith("The ")


# --- From a shell, killed


def start_train(text, cache, out, *more):
    words = ["--layers", "1", "--length", "32", "--batch", "8", "--target", "cpu:1"]
    words += ["--layout", "ddp", "--evaluate-batches", "0", "--sample", "0"]
    words += ["--data", str(text), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-c", "from scaling_lab.cli import main; main()"]
        + ["train", *words],
        env={**os.environ, "SCALING_LAB_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def whole_steps(out):
    folder = out / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_whole_checkpoint(
    text, cache, tmp_path
):
    often = ["--steps", "100000", "--save-every", "1", "--schedule", "constant"]
    process = start_train(text, cache, tmp_path, *often)
    deadline = time.monotonic() + 300
    while len(whole_steps(tmp_path)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    last = whole_steps(tmp_path)[-1]
    assert last >= 2
    more = ["--steps", str(last + 2), "--schedule", "constant", "--resume", "--json"]
    process = start_train(text, cache, tmp_path, *more)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert f"resuming from step {last}" in said
    row = json.loads(said.splitlines()[-1])
    assert row["measured"]["loss"]["steps"] == [last + 1, last + 2]
    assert whole_steps(tmp_path)[-1] == last + 2
