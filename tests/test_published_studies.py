"""Reproduced studies: what is far off is explained, and what is near stays near."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from experiments import _published as study

#: Module -> the largest median and the largest single deviation of its predictions.
STUDIES = {
    "llama3_405b_layouts": (0.05, 0.20),
    "maxtext_tables": (0.10, 0.60),
    "megatron_weak_scaling": (0.05, 0.10),
    "palm_540b": (0.12, 0.12),
    "selective_recompute": (0.08, 0.13),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    loaded = {name: importlib.import_module(f"experiments.{name}") for name in STUDIES}
    return {name: study.answer(each.RUNS, each.PATH) for name, each in loaded.items()}


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_far_off_is_explained(name: str, rows: dict[str, Any]) -> None:
    for row in rows[name]:
        for ratio, words in (
            ("ratio", "why"),
            ("our_ratio", "differs"),
            ("compiled_ratio", "differs"),
        ):
            far = row[ratio] is not None and abs(row[ratio] - 1) > study.FAR
            assert not far or row[words], (row["name"], ratio, row[ratio])


@pytest.mark.parametrize("name", STUDIES)
def test_predictions_stay_as_near_as_they_are(name: str, rows: dict[str, Any]) -> None:
    median, most = STUDIES[name]
    away = sorted(abs(row["ratio"] - 1) for row in rows[name])
    assert away[len(away) // 2] <= median and away[-1] <= most


def test_selective_recomputation_gains(rows: dict[str, Any]) -> None:
    pairs = rows["selective_recompute"]
    for full, selective in zip(pairs[::2], pairs[1::2], strict=True):
        for name in ("published_seconds", "predicted_seconds"):
            assert full[name] > 1.2 * selective[name]


def test_the_sweep_on_paper_is_near_where_a_gpu_has_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("experiments.ultra_scale_layouts")
    cells = module.answer()
    assert len(cells) == 26
    small = [row for row in cells if row["model"] != "80B" and row["nodes"] <= 4]
    assert len(small) == 9 and all(abs(row["ratio"] - 1) <= 0.12 for row in small)
    assert all(0.2 < row["ratio"] < 4 for row in cells)
    far = [row for row in cells if abs(row["ratio"] - 1) > study.FAR]
    assert far and all(row["why"] for row in far)
    # The lower the published MFU by more nodes, the lower the predicted.
    for model in ("1.34B", "3.57B", "8.86B"):
        mine = [row["predicted_mfu"] for row in cells if row["model"] == model]
        assert mine == sorted(mine, reverse=True)
    monkeypatch.setattr(module, "answer", lambda: cells)
    monkeypatch.setattr("sys.argv", ["ultra_scale_layouts"])
    module.main()
    assert "80B on 64 nodes" in capsys.readouterr().out


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_prints_its_table_and_conventions(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr("sys.argv", [name])
    module.main()
    text = capsys.readouterr().out
    assert text.startswith(module.CONVENTIONS[:40])
    assert all(run.name in text for run in module.RUNS)
