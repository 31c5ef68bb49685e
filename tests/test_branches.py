"""Cooldowns that share a trunk leave what each run would have left alone."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from scaling_lab import measure, record, sweep
from scaling_lab.config import configure
from scaling_lab.optimizers import OptimizerConfig, cooldown_start, schedule
from scaling_lab.sweep import run_here
from scaling_lab.sweep.branches import run_branches, steps_saved, trunks

pytestmark = pytest.mark.usefixtures("quick_compiles")

LENGTHS = (10, 16)


@pytest.fixture(scope="module")
def runs(text):
    model = {"width": 32, "layers": 1}
    words = {"batch": 4, "length": 32, "warmup": 3, "learning_rate": 1e-2}
    return [
        configure(
            layout="data=1",
            schedule="wsd",
            steps=steps,
            data=str(text),
            held_out_fraction=0.2,
            evaluate_batches=2,
            **model,
            **words,
        )
        for steps in LENGTHS
    ]


def test_a_cooldown_starts_where_its_schedule_bends():
    for steps, warmup, decay in ((100, 10, 0.2), (7, 0, 0.5), (50, 3, 0.33)):
        config = OptimizerConfig(schedule="wsd", warmup=warmup, decay=decay)
        rate = schedule(config, steps)
        rates = np.array([rate(step) for step in range(steps)])
        start = cooldown_start(config, steps)
        np.testing.assert_allclose(rates[warmup:start], config.learning_rate)
        assert rates[-1] < 0.99 * config.learning_rate
        assert (rates[start + 1 :] < 0.999 * config.learning_rate).all()


def test_branches_are_the_runs_that_stand_alone(request, runs, tmp_path, cache):
    """To the bit, by XLA's default emitters: the tests' round two programs apart."""
    if os.environ.get("XLA_FLAGS"):
        again = [sys.executable, "-m", "pytest", "-q", request.node.nodeid]
        plain = os.environ | {"XLA_FLAGS": ""}
        subprocess.run(again, check=True, env=plain, cwd=request.config.rootpath)
        return
    done = run_branches(runs[::-1], tmp_path, cache_dir=cache)
    assert [row.status for row in done.records] == ["ok", "ok"], done.records[0].reason
    assert [row.asked["steps"] for row in done.records] == [16, 10]
    for config, found in zip(runs[::-1], done.records, strict=True):
        alone = run_here(config, cache_dir=cache)
        assert found.id == alone.id
        told, wanted = found.measured, alone.measured
        assert told["loss"]["steps"] == wanted["loss"]["steps"]
        np.testing.assert_array_equal(told["loss"]["values"], wanted["loss"]["values"])
        assert told["held_out"] == wanted["held_out"]
        kind = found.provenance["host"]["device_kind"]
        assert kind == alone.provenance["host"]["device_kind"]
        # Every part of a trunk, and a branch, has first steps that do not count.
        lost = wanted["step_seconds"]["repeats"] - told["step_seconds"]["repeats"]
        assert 0 <= lost <= measure.WARMUP * len(LENGTHS)
    again = run_branches(runs, tmp_path, cache_dir=cache)
    assert (again.ran, again.kept) == (0, 2)
    assert len(record.read(record.file_of(tmp_path))) == 2


def test_a_run_that_fails_takes_only_its_group(runs, tmp_path, cache):
    broken = dataclasses.replace(
        runs[0], optimizer=dataclasses.replace(runs[0].optimizer, learning_rate=1e38)
    )
    done = run_branches([broken, runs[0]], tmp_path, cache_dir=cache)
    assert [row.status for row in done.records] == ["crashed", "ok"]
    assert "NotFinite" in done.records[0].reason


def test_a_step_on_a_branch_is_counted_from_the_first(runs, tmp_path, cache):
    numbers = []

    def watch(event, config, facts):
        if event == "step" and config.steps == longest.steps:
            numbers.append(facts["number"])

    longest = runs[1]
    run_branches([longest], tmp_path, cache_dir=cache, watch=watch)
    assert numbers == list(range(1, longest.steps + 1))
    heard = []
    run_branches(
        [longest],
        tmp_path,
        cache_dir=cache,
        watch=lambda event, *_: heard.append(event),
    )
    assert heard == ["kept"]


def test_groups_are_of_runs_that_differ_in_steps(runs):
    other = dataclasses.replace(runs[0], seed=1)
    groups = trunks([runs[1], other, runs[0]])
    assert [[c.steps for c in group] for group in groups] == [[10, 16], [10]]
    assert steps_saved(groups[0]) == cooldown_start(runs[0].optimizer, 10) == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"schedule": "cosine"}, "say --schedule wsd"),
        ({"schedule": "wsd", "warmup": 20}, "before the 20 of its warmup are over"),
    ],
)
def test_runs_without_a_trunk_are_refused(words, said, tmp_path, text):
    config = configure(layout="data=1", steps=16, data=str(text), **words)
    with pytest.raises(ValueError, match=said):
        sweep.run_branches([config], tmp_path)
    assert not record.file_of(tmp_path).exists()


def test_the_command_shares_a_trunk(call, text, cache, monkeypatch):
    monkeypatch.setenv("SCALING_LAB_CACHE", str(cache))
    words = (
        "sweep --share-trunk --schedule wsd --warmup 2 --steps 6 8 "
        f"--layout data=1 --width 32 --layers 1 --batch 2 --length 32 --data {text} "
        "--held-out-fraction 0.2 --evaluate-batches 1 --out runs --json"
    )
    code, out, err = call(words)
    assert code == 0, err
    rows = [record.RunRecord.from_json(line) for line in out.splitlines()]
    assert [row.asked["steps"] for row in rows] == [6, 8]
    assert [row.provenance["trunk_steps"] for row in rows] == [5, 7]
    code, _, err = call(words + " --timeout 9")
    assert code == 2 and "neither --compile-only nor --timeout" in err
    code, out, _ = call(words.replace("--json", "--dry-run"))
    assert "6 steps" in out and "8 steps" in out
    code, _, err = call(words.replace("wsd", "cosine"))
    assert code == 2 and "say --schedule wsd" in err
