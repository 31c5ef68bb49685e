"""predict and calibrate from a shell, and a calibration of a real machine."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling_lab import cli, record
from scaling_lab.cost import calibrations
from scaling_lab.cost.calibrating import from_records, points_of_records, seconds_of
from scaling_lab.cost.predict import predict
from scaling_lab.cost.published import COLUMNS

RECORDS = Path(__file__).parents[1] / "experiments/results/cpu_calibration.jsonl"


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs the command line; its exit code and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["scaling-lab", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return run


def table(path, **changes):
    row = {
        "run": "a",
        "framework": "Megatron-LM",
        "model": "GPT-175B",
        "layers": 96,
        "d_model": 12288,
        "n_heads": 96,
        "d_ff": 49152,
        "seq_len": 2048,
        "global_batch_tokens": 1536 * 2048,
        "microbatch_seqs": 1,
        "hardware": "a100-80gb",
        "chips": 512,
        "data": 8,
        "tensor": 8,
        "stage": 8,
        "precision": "bf16",
        "remat": "full",
        "step_seconds": 40.0,
    }
    frame = pd.DataFrame([row, row | {"run": "b", "chips": None} | changes])
    frame.to_csv(path, index=False)
    return path


def test_a_table_is_predicted_row_by_row(call, tmp_path):
    runs, out = table(tmp_path / "runs.csv"), tmp_path / "new" / "out.csv"
    code, _, said = call("predict", "--runs", runs, "--out", out)
    assert code == 0
    assert "1 of 2 rows predicted" in said and "row 2 (b): chips is blank" in said
    assert "median error" in said
    done = pd.read_csv(out)
    assert list(done.prediction_status) == ["ok", "unread"]
    assert done.predicted_step_seconds[0] > 0 and done.predicted_hbm_bytes[0] > 0
    assert not list(out.parent.glob("*.unfinished"))


def test_columns_that_are_not_read_are_named(call, tmp_path):
    runs, out = table(tmp_path / "runs.csv"), tmp_path / "out.csv"
    said = call("predict", "--runs", runs, "--out", out)[2]
    assert "columns not read" not in said
    frame = pd.read_csv(runs).assign(micro_batch=1, note="x")
    frame.to_csv(runs, index=False)
    code, printed, said = call("predict", "--runs", runs, "--out", out)
    assert code == 0 and not printed
    assert "columns not read: micro_batch, note (--help" in said
    assert list(pd.read_csv(out).note) == ["x", "x"]
    again = call("predict", "--runs", out, "--out", tmp_path / "again.csv")[2]
    assert "columns not read: micro_batch, note (--help" in again
    told = re.findall(r"\w+", call("predict", "--help")[1])
    assert not {*COLUMNS, "step_seconds"} - {*told}


def test_a_calibration_changes_a_prediction(call, tmp_path):
    runs = table(tmp_path / "runs.csv", chips=512, step_seconds=41.0)
    mine, out = tmp_path / "mine.json", tmp_path / "out.csv"
    frame = pd.read_csv(runs)
    assert call("predict", "--runs", runs, "--out", out)[0] == 0
    before = pd.read_csv(out).predicted_step_seconds
    # Twice as slow as predicted, twenty times over.
    slow = pd.concat([frame.assign(step_seconds=2 * before)] * 10)
    slow.assign(source="here").to_csv(runs, index=False)
    code, _, said = call("calibrate", runs, "--out", mine)
    assert code == 0 and "20 rows" in said
    assert call("predict", "--runs", runs, "--out", out, "--calibration", mine)[0] == 0
    after = pd.read_csv(out).predicted_step_seconds
    assert after[0] > 1.3 * before[0]
    assert json.loads(mine.read_text())["rows"] == ["a", "b"] * 10


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--runs", "RUNS"], "--runs needs --out"),
        (["--out", "x.csv"], "--out is for a table"),
        (["--runs", "nowhere.csv", "--out", "x.csv"], "nowhere.csv"),
        (["--runs", "RUNS", "--out", "x.csv", "--calibration", "RUNS"], "no calibra"),
    ],
)
def test_bad_words_end_with_one_message(call, tmp_path, words, reason):
    runs = table(tmp_path / "runs.csv")
    code, _, said = call("predict", *[runs if w == "RUNS" else w for w in words])
    assert code == 2 and reason in said


def test_one_run_is_predicted_without_a_table(call):
    words = "--size 8b --target tpu-v5p:4x4x4 --layout fsdp=64 --batch 128"
    more = "--length 4096 --remat full --precision bfloat16 --json"
    code, out, _ = call("predict", *words.split(), *more.split())
    facts = json.loads(out)
    assert code == 0 and facts["target"] == "tpu-v5p:4x4x4"
    assert 0.3 < facts["mfu_causal"] < 0.8
    assert facts["step_seconds_low"] < facts["step_seconds"]


ONE = "--size 8b --target h100:8x8 --batch 128 --length 4096 --precision bfloat16"


def test_one_run_says_whether_it_fits(call):
    small = "--layout fsdp=8 --target h100:1x8"
    code, out, _ = call("predict", *ONE.split(), *small.split())
    assert code == 0 and "of 79.11 GiB a device: does not fit" in out
    code, out, _ = call("predict", *ONE.split(), "--layout", "fsdp=64", "--json")
    assert json.loads(out)["fits"] is True


def test_stages_and_rings_are_priced(call):
    def seconds(layout, *more):
        code, out, said = call(
            "predict", *ONE.split(), "--layout", layout, *more, "--json"
        )
        assert code == 0, said
        return json.loads(out)["seconds"]

    piped = seconds("stage=4,fsdp=16", "--accumulate", "8")
    assert piped["bubble"] > 0 and piped["stage exposed"] > 0
    plain = seconds("fsdp=64")
    assert piped["products"] == pytest.approx(plain["products"], rel=0.05)
    rings = seconds("context=4,fsdp=16")
    assert rings["context exposed"] > 0 and rings["bubble"] == 0
    whole = seconds("context=4,fsdp=16+ulysses")
    assert 0 < whole["context exposed"] != rings["context exposed"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--layout fsdp=64 --batch 100", "dim B=100 .batch. does not divide"),
        ("--layout fsdp=16", "16 devices and the target has 64"),
        ("--layout stage=4,fsdp=16", "leave stages idle .* --accumulate .*: 4, 8"),
        ("--layout stage=64 --accumulate 64", "more than the L=32 layers"),
        ("--layout context=64 --length 4160", "nearest length: 4096, 4224"),
    ],
)
def test_a_run_that_cannot_be_is_not_priced(call, words, reason):
    code, out, said = call("predict", *ONE.split(), *words.split())
    assert code == 2 and not out
    assert re.search(reason, " ".join(said.split()))


def test_to_a_dense_model_the_axis_expert_is_one_more_of_fsdp(call):
    def seconds(layout):
        code, out, said = call("predict", *ONE.split(), "--layout", layout, "--json")
        assert code == 0, said
        return json.loads(out)["seconds"]

    assert seconds("expert=4,fsdp=16") == seconds("fsdp=64")


def test_records_without_a_clock_are_refused(tmp_path):
    record.append(tmp_path, record.RunRecord("x", "e", "ok", {"config": {}}))
    with pytest.raises(ValueError, match="no record of .* measured step"):
        from_records(tmp_path)


def test_imported_records_are_sent_to_their_table(call, tmp_path):
    runs = table(tmp_path / "runs.csv")
    assert call("records", "import", runs, "--out", tmp_path / "theirs")[0] == 0
    out = tmp_path / "mine.json"
    code, _, said = call("calibrate", tmp_path / "theirs", "--out", out)
    assert code == 2 and not out.exists()
    assert "2 timed records" in said and "the table they came from" in said


def test_records_of_one_chip_leave_every_other_as_it_was(call, tmp_path):
    mine, again = tmp_path / "mine.json", tmp_path / "again.json"
    code, _, said = call("calibrate", RECORDS, "--out", mine)
    assert code == 0 and "rows of cpu" in said
    kept = json.loads(calibrations.FROZEN.read_text("utf-8"))["efficiencies"]
    written = json.loads(mine.read_text("utf-8"))
    assert written["efficiencies"] == kept and set(written["own"]) == {"cpu"}

    def said_of(target, layout, *more):
        words = f"--size 8b --target {target} --layout {layout} --batch 128 --json"
        code, out, said = call("predict", *words.split(), *more)
        assert code in (0, 1), said
        return json.loads(out)

    own = ("--calibration", mine)
    for target in ("h100:8x8", "tpu-v5p:4x4x4"):
        assert said_of(target, "fsdp=64", *own) == said_of(target, "fsdp=64")
    here = said_of("cpu:8", "fsdp=8", *own)
    assert here["step_seconds"] > 1.5 * said_of("cpu:8", "fsdp=8")["step_seconds"]
    assert call("calibrate", RECORDS, "--out", again, *own)[0] == 0
    names = [
        line["name"]
        for line in json.loads(again.read_text())["own"]["cpu"]["efficiencies"]
    ]
    assert len(names) == len(set(names))


def test_half_of_a_sweep_predicts_the_other(tmp_path):
    """Calibrated on alternate records of a CPU's sweep: within 10 % in the median."""
    rows = [r for r in record.read(RECORDS) if seconds_of(r) is not None]
    assert len(rows) >= 20
    for shift in (0, 1):
        folder = tmp_path / str(shift)
        for row in rows[shift::2]:
            record.append(folder, row)
        found = from_records(folder)
        others = rows[1 - shift :: 2]
        clock = np.array([seconds_of(row) for row in others])
        said = predict(points_of_records(others), found.fit.calibration).step_seconds
        missed = np.median(np.abs(said / clock - 1))
        assert missed < 0.10
        frozen = predict(points_of_records(others), calibrations.frozen()).step_seconds
        assert np.median(np.abs(frozen / clock - 1)) > 2 * missed
