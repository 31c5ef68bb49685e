"""How good predictions are of rows that the fit has never seen: the bars, and reached.

Every repository of the published runs is left out in turn; so is every model and every
machine of vTrain's tables. The figures are those of `experiments.score_predictions`.
"""

import numpy as np
import pytest

from experiments import score_predictions
from scaling_lab.cost import calibrations
from scaling_lab.cost.calibrating import from_table

#: Groups whose median error must be at most two thirds of the look-up's.
GROUPS = (
    "all",
    "dense",
    "moe",
    "low precision",
    "tpu",
    "ampere",
    "hopper",
    "blackwell",
)
#: A group of two rows, whose network no row names: its bar is the look-up's alone.
FEW = ("volta",)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scores(shared):
    return score_predictions.score(shared / "data")


@pytest.mark.parametrize("group", (*GROUPS, *FEW))
def test_two_thirds_of_a_look_up(scores, group):
    found = scores["groups"][group]
    assert found["rows"] >= (2 if group in FEW else 20)
    assert found["model"]["median"] <= found["look-up"]["median"] * 2 / 3
    assert found["model"]["median"] <= found["median of kind"]["median"]


@pytest.mark.parametrize("group", GROUPS)
def test_errors_stay_where_they_are(scores, group):
    reached = {"all": 0.09, "moe": 0.125, "hopper": 0.095, "ampere": 0.085}
    assert scores["groups"][group]["model"]["median"] < reached.get(group, 0.115)


def test_layouts_are_ordered(scores):
    found = scores["pairs"]["model"]
    assert found["pairs"] > 300 and found["ordered"] >= 0.85
    assert found["ordered"] > scores["pairs"]["look-up"]["ordered"]


def test_intervals_hold_four_fifths(scores):
    assert 0.70 <= scores["groups"]["all"]["inside_80"] <= 0.90
    for group in ("dense", "moe", "low precision", "tpu"):
        assert 0.70 <= scores["groups"][group]["inside_80"] <= 0.92


@pytest.mark.parametrize("table", score_predictions.VTRAIN)
def test_better_than_the_published_simulator(scores, table):
    found = scores["vtrain"][table]
    assert found["model"] < found["published"]
    assert found["machine"] < found["published"]


def test_what_is_frozen_is_what_the_command_makes(shared):
    path = shared / "data" / "published_runs" / "published_runs.csv"
    again = from_table(path)
    frozen = calibrations.frozen()
    assert again.half_width == pytest.approx(frozen.half_width, rel=1e-3)
    for name, log in again.fit.calibration.logs.items():
        assert np.exp(log) == pytest.approx(np.exp(frozen.logs[name]), rel=1e-3), name
