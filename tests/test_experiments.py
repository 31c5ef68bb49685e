"""Every experiment states its question, its configs are legal, and it runs, small."""

import dataclasses
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys

import pytest

import experiments
from scaling_lab import record
from scaling_lab.compile import price
from scaling_lab.hardware import parse_target
from scaling_lab.sweep import run_here
from scaling_lab.sweep.run import check_legal

NAMES = [
    module.name
    for module in pkgutil.iter_modules(experiments.__path__)
    if not module.name.startswith("_")
]
SWEEPS = ("batch_and_remat", "layouts_at_fixed_batch", "weak_scaling")


def load(name):
    return importlib.import_module(f"experiments.{name}")


def test_the_promised_experiments_are_there():
    assert {*SWEEPS, "cpu_step_against_peers"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_header_says_question_command_cost_and_expectation(name):
    header = load(name).__doc__
    assert header.splitlines()[0].endswith("?")
    assert re.search(rf"^Run: +python -m experiments\.{name}\b", header, re.M)
    assert re.search(r"^Takes: ", header, re.M) and re.search(
        r"^Expect: ", header, re.M
    )
    assert callable(load(name).main)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_legal(name):
    configs = load(name).CONFIGS
    assert configs and len({config.id for config in configs}) == len(configs)
    for config in configs:
        check_legal(config)


@pytest.mark.parametrize("name", ["score_predictions", "search_quality"])
def test_tables_that_are_not_there_are_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"vtrain_multi_half.csv in .*--data FOLDER"):
        load(name).main()


def test_compiled_steps_are_told_from_their_records(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compiled_step_quality"])
    load("compiled_step_quality").main()
    told = capsys.readouterr().out
    assert "not compiled yet" not in told
    assert re.search(r"8b +tpu-v5p:4x4x4 +7\.\d\d .* 2\.3\d\d G", told)


def test_prices_of_gpus_are_what_was_fitted():
    fits = json.loads(load("gpu_prices").FITS.read_text())
    assert set(fits) == {"a100", "h100"}
    for chip, shares in fits.items():
        frozen = price.efficiencies(parse_target(f"{chip}:1x8").chip)
        assert shares == {name: getattr(frozen, name) for name in shares}


def test_prices_of_gpus_hold_on_rows_left_out():
    table = load("gpu_prices")
    found = table.answer(record.latest(record.read(table.RESULTS)))
    assert found["left out"]["rows"] >= 6
    assert found["left out"]["median"] <= 0.15


def test_compiled_steps_of_public_tpu_runs_take_as_long_as_they_did():
    table = load("compiled_against_published")
    found = table.answer(record.latest(record.read(table.RESULTS)))
    assert found["exact"]["rows"] == 3 and found["exact"]["median"] <= 0.05
    assert found["exact_and_near"]["median"] <= 0.15


def test_stages_do_what_is_counted_and_zero_bubble_less():
    """Five of twelve compiled pipelines give the costs of tasks; the rest follow."""
    table = load("pipeline_schedules")
    rows = table.small(record.latest(record.read(table.RESULTS)))
    assert len(rows) == 12
    flops = {(row["schedule"], row["microbatches"]): row["flops"] for row in rows}
    held = {(r["schedule"], r["microbatches"]): r["temporary_bytes"] for r in rows}
    for row in rows:
        assert row["flops"] == pytest.approx(row["counted_flops"], rel=0.01)
        assert row["simulated_flops"] <= 1.001 * row["counted_flops"]
    for count in (4, 8, 16):
        assert flops["zero_bubble", count] < flops["1f1b", count]
        assert held["1f1b", count] < held["gpipe", count]
    assert held["gpipe", 16] > 2 * held["gpipe", 4]
    assert held["1f1b", 16] < 1.2 * held["1f1b", 4]


def test_the_main_job_has_the_six_layouts():
    meshes = [config.layout.mesh for config in load("layouts_at_fixed_batch").CONFIGS]
    layouts = [config.layout for config in load("layouts_at_fixed_batch").CONFIGS]
    assert {"data": 8} in meshes and {"fsdp": 8} in meshes
    assert {"data": 2, "fsdp": 4} in meshes and {"fsdp": 4, "tensor": 2} in meshes
    assert any(layout.optimizer is not None for layout in layouts)
    assert any("BTD" in layout.acts for layout in layouts)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_small_run_of_the_last_config(name, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    config = load(name).CONFIGS[-1]
    small = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, L=1),
        data=dataclasses.replace(
            config.data, source=(str(text),), held_out_fraction=0.0
        ),
        length=32,
        batch=16,
        steps=3,
    )
    row = run_here(small, cache_dir=tmp_path)
    assert row.status == "ok", row.reason
    assert row.compiled["peak_bytes"] > 0
    assert row.measured["loss"]["values"][-1] < row.measured["loss"]["values"][0]


def test_every_case_that_was_trained_is_as_on_one_device():
    table = load("layout_equivalence")
    rows, rounding = list(table.kept().values()), table.kept(table.ROUNDING)
    assert {row["id"] for row in rows} == set(table.CASES)
    for row in rows:
        assert not table.over(row, rounding), row
    past = [row for row in rows if table.beyond(row)]
    assert len(past) < 0.1 * len(rows) and all(table.over(row, {}) for row in past)
    assert not any(table.MODES[table.case_of(row).mode].exact for row in past)


def test_low_precision_learns_as_float32_does():
    table = load("low_precision_curves")
    rows = {row["mode"]: row for row in table.curves()}
    assert rows.keys() == table.MODES.keys()
    spread = rows["float32"]["spread"]
    for row in rows.values():
        assert row["seeds"] == len(table.SEEDS)
        assert abs(row["from_float32"]) < 3 * spread, row


def test_mechanisms_move_what_their_layouts_imply():
    """And no collective stands in a branch."""
    table = load("mechanisms_compiled")
    rows = table.answer(record.latest(record.read(table.RESULTS)))["rows"]
    refused = [("h100:1x8", "optimizer on the host")]  # its devices tell of no host
    for row in rows:
        if (row["target"], row["mechanism"]) in refused:
            assert row["status"] == "illegal", row
            continue
        assert row["status"] == "ok", row
        assert not row["unasked"], row
        assert row["in_branches"] == [], row


def test_verbs_add_no_operation_to_what_is_compiled():
    table = load("place_overhead")
    found = table.answer(table.CONFIGS[0])
    forward, both = found["forward"], found["forward and backward"]
    assert forward["verbs"] == forward["hand"] and forward["verbs"]["dot"] == 9
    assert sum(both["verbs"].values()) <= sum(both["hand"].values())
    assert both["verbs"]["dot"] == both["hand"]["dot"] == 27
    assert both["verbs"]["all-gather"] == both["hand"]["all-gather"]


def test_overhead_is_measured():
    assert 0 < load("lab_overhead").seconds_per_step(3) < 10


def test_refits_side_by_side_are_the_minima_of_each_alone():
    found = load("bootstrap_fits").answer(refits=20, alone=4)
    assert found["at_rest"] == 1 and abs(found["highest_gap"]) < 1e-4
    assert found["lowest_gap"] > -1e-6


def test_a_sweep_module_takes_dry_run():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.weak_scaling", "--dry-run"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "8 runs, about" in done.stdout


def test_without_the_peer_it_names_the_extra():
    if importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is installed here")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cpu_step_against_peers"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode and ".[peers]" in done.stderr


@pytest.mark.slow
def test_beside_the_peer_the_ratio_comes_last():
    if not importlib.util.find_spec("torch"):
        pytest.skip("needs the extra `peers`: PyTorch is not installed here")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.cpu_step_against_peers"),
            *("--rounds", "1", "--steps", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ratio: \d+\.\d\d", done.stdout.splitlines()[-1])
