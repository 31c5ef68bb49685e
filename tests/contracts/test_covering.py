"""Every pair of mechanisms that can be, trained: see `covering`, and `covering.txt`."""

import difflib
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts import covering, sixteen
from contracts.training import Trained, same
from scaling_lab.layouts import grammar

ROWS = Path(__file__).parent / "covering.txt"
UPDATE = "UPDATE_SNAPSHOTS"
#: In bfloat16, whose sums round to 8 bits, otherwise in every order.
ROUGH = [
    covering.Case("llama", "fsdp=2,context=2,tensor=2+sequence+ring"),
    covering.Case("llama", "stage=2,fsdp=4", "full"),
    covering.Case("mixtral", "expert=4,fsdp=2"),
]
ROUGH = [case._replace(precision="bfloat16") for case in ROUGH]
#: Of norms, relatively, where a token between two experts may turn to the other one;
#: noise is what a gradient of nothing comes to.
BOUNDS = {"loss": 1e-2, "gradient": 1e-1, "update": 2e-1, "noise": 1e-4}
#: Where optimizer state waits between steps meets no other mechanism but the update,
#: and that in `test_away`.
ELSEWHERE = {"offload_optimizer"}
#: Rows that failed once, whatever the others are by now.
FOUND = [covering.Case("llama", "data=8+zero2", "full", axis_type="explicit")]


@pytest.fixture(scope="module")
def refused(tiny):
    return covering.refused_pairs(tiny)


def test_the_rows_are_those_of_the_grammar(refused):
    found = covering.written(covering.covering(refused), refused)
    if os.environ.get(UPDATE):
        ROWS.write_text(found, "utf-8")
    kept = ROWS.read_text("utf-8") if ROWS.exists() else ""
    diff = "\n".join(difflib.unified_diff(kept.split("\n"), found.split("\n"), n=0))
    assert found == kept, (
        f"the grammar has other pairs than {ROWS.name} holds:\n{diff}\n"
        f"If that is meant, run {UPDATE}=1 pytest {Path(__file__).name} and commit."
    )


def test_every_pair_is_in_a_row_or_refused(refused):
    held = set().union(*map(covering.held_by, covering.covering(refused)))
    pairs = set(covering.every_pair())
    assert pairs - held == set(refused)
    assert not held & set(refused)
    assert not set(covering.every_three()) - held


def test_every_word_of_the_grammar_is_in_a_row():
    said = {
        word.partition("=")[0]
        for case in covering.read(ROWS.read_text("utf-8"))
        for word in case.layout.split("+")[1:]
    }
    assert said | ELSEWHERE == set(grammar.MODIFIERS)


@pytest.fixture(scope="module")
def batches(packed):
    return [packed(covering.BATCH, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alone(tiny, batches):
    """Three steps on one device, once for all rows that they are the measure of."""
    return functools.cache(lambda config: Trained(config, batches))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [*covering.read(ROWS.read_text("utf-8")), *FOUND, *ROUGH],
    ids=lambda case: "-".join(map(str, case)),
)
@pytest.mark.usefixtures("quick_compiles")
def test_a_row_trains_as_one_device(case, tiny, batches, alone):
    found = Trained(case.config(tiny), batches)
    bounds = BOUNDS if case in ROUGH else {}
    same(found, alone(case.alone(tiny)), **bounds)


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
    assert done.stdout.split() == [case.layout for case in sixteen.CASES]
