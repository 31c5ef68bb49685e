"""Every pair of mechanisms that can be, trained: see `covering`, and `covering.txt`."""

import dataclasses
import difflib
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from contracts import covering, search, sixteen
from contracts.cases import BATCH, Case
from contracts.training import Trained, same
from scaling_lab import train
from scaling_lab.layouts import grammar
from scaling_lab.parallel.low_precision import RECIPES

ROWS = Path(__file__).parent / "covering.txt"
UPDATE = "UPDATE_SNAPSHOTS"
#: Rows that failed once, whatever the others are by now.
FOUND = [Case("llama", "data=8+zero2", "full", axis_type="explicit")]


def cases():
    return covering.read(ROWS.read_text("utf-8"))


@pytest.fixture(scope="module")
def refused(tiny):
    found = covering.refused_pairs(tiny)
    if os.environ.get(UPDATE):
        rows = covering.written(search.covering(found))
        ROWS.write_text(f"{rows}\n\n{covering.told(found)}", "utf-8")
    return found


ADVICE = f"run {UPDATE}=1 pytest {Path(__file__).name}, two minutes, and commit"


def test_every_pair_is_in_a_row_or_refused(refused):
    held = [covering.held_by(covering.row_of(case)) for case in cases()]
    missing = set(covering.meetings(refused)).difference(*held)
    assert not missing, f"the grammar has pairs that no row holds; {ADVICE}: {missing}"
    assert not set(refused).intersection(*held)


def test_what_is_refused_is_told(refused):
    kept = ROWS.read_text("utf-8").partition("\n\n")[2].split("\n")
    found = covering.told(refused).split("\n")
    diff = "\n".join(difflib.unified_diff(kept, found, n=0))
    assert found == kept, f"validation refuses other pairs; {ADVICE}:\n{diff}"


def test_every_word_of_the_grammar_is_in_a_row():
    said = {
        word.partition("=")[0]
        for case in cases()
        for word in case.layout.split("+")[1:]
    }
    assert said == set(grammar.MODIFIERS)


@pytest.fixture(scope="module")
def batches(packed):
    return [packed(BATCH, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alone(tiny, batches):
    """Three steps on one device, once for all rows that they are the measure of."""
    return functools.cache(lambda case: Trained(case.alone(tiny), batches))


@pytest.fixture
def in_float32(case, monkeypatch):
    """Of products in 8 bits everything but the codes, to be compared closely."""
    made = train.program.make_placement

    def placement(config, devices=None):
        return dataclasses.replace(made(config, devices), compute=jnp.float32)

    if case.precision in RECIPES:
        monkeypatch.setattr(train.program, "make_placement", placement)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*cases(), *FOUND], ids=lambda case: "-".join(map(str, case))
)
@pytest.mark.usefixtures("quick_compiles", "in_float32")
def test_a_row_trains_as_one_device(case, tiny, batches, alone):
    found = Trained(case.config(tiny), batches)
    same(found, alone(case.measure()), **case.near())


@pytest.mark.slow
def test_four_axes_train_as_one_device():
    """On sixteen devices, so in a process of its own."""
    tests = ROWS.parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "contracts.sixteen"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [case.layout for case in sixteen.cases()]
