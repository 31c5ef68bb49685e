"""Tables from elsewhere as records: nothing lost, units kept, failures kept."""

import json

import pytest

from scaling_lab import studies
from scaling_lab.interop import read_table

WANDB = """Name,State,Created,config.model.name,config.training.seq_len,\
config.training.global_batch_size,config.parallelism.tensor_parallel_degree,gpus,gpu,\
throughput(tps),mfu(%),memory/max_reserved(GiB),loss,notes
dashing-fox,finished,2026-02-01T10:00:00.000Z,llama3-8b,8192,64,2,8,h100,7000,41.5,\
62.5,2.31,first
calm-owl,crashed,2026-02-01T11:00:00.000Z,llama3-8b,8192,64,1,8,h100,,,,,
"""


def table(tmp_path, text, name="runs.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_an_export_of_wandb(tmp_path):
    found = read_table(table(tmp_path, WANDB))
    first, second = found.records
    assert first.asked["size"] == "llama3-8b"
    assert first.asked["target"] == "h100:1x8"
    assert first.asked["layout"] == "tensor=2"
    assert (first.asked["batch"], first.asked["length"]) == (64, 8192)
    assert first.measured["tokens_per_second"] == 7000 * 8
    assert first.measured["step_seconds"]["median"] == pytest.approx(
        64 * 8192 / (7000 * 8)
    )
    assert first.measured["mfu"] == {"as_reported": pytest.approx(0.415)}
    assert first.measured["peak_bytes"] == 62.5 * 2**30
    assert first.measured["loss"] == {"final": 2.31}
    assert first.provenance["imported_from"]["file"] == "runs.csv"
    assert first.provenance["imported_from"]["run"] == "dashing-fox"
    assert second.status == "crashed"
    assert "crashed" in second.reason
    assert second.measured is None
    assert found.unknown == ["notes"]
    assert first.asked["imported"]["notes"] == "first"


@pytest.mark.parametrize(
    ("headings", "cells"),
    [
        ("iteration-time,seq_length,global_batch_size", "2.0,4096,256"),
        ("throughput/duration,seq_len,batch", "2.0,4096,256"),
        (
            "throughput/tokens_per_sec_per_gpu,seq_len,batch,world_size",
            "8192,4096,256,64",
        ),
        (
            "throughput/device/tokens_per_sec,seq_len,batch,world_size",
            "8192,4096,256,64",
        ),
        ("throughput/tokens_per_sec,seq_len,batch", "524288,4096,256"),
    ],
)
def test_how_trainers_log_the_clock(tmp_path, headings, cells):
    """Megatron-LM, Levanter and Composer, as they send it to a tracker."""
    (found,) = read_table(table(tmp_path, f"{headings}\n{cells}\n")).records
    assert found.measured["step_seconds"]["median"] == 2.0
    assert found.measured["tokens_per_second"] == 2**19


def test_a_gpu_by_what_its_driver_calls_it(tmp_path):
    text = "step_seconds,world_size,gpu\n1.5,64,NVIDIA H100 80GB HBM3\n"
    found = read_table(table(tmp_path, text))
    assert found.records[0].asked["target"] == "h100:8x8" and not found.complaints


def test_published_runs(shared):
    path = shared / "data" / "published_runs" / "published_runs.csv"
    found = read_table(path)
    frame = studies.frame(found.records)
    assert len(frame) == len(found.records) > 300
    assert not found.complaints
    assert frame.step_seconds.notna().all()
    ratio = frame.tokens_per_step / frame.step_seconds / frame.tokens_per_second
    assert ((ratio - 1).abs() < 0.1).mean() > 0.95
    assert (frame.target == "h100:1x8").any()


def test_milliseconds_and_billions(tmp_path):
    text = "# GPUs,Parameters (billion),iteration time (ms)\n64,3.6,3638.3\n"
    (found,) = read_table(table(tmp_path, text)).records
    assert found.measured["step_seconds"]["median"] == pytest.approx(3.6383)
    assert found.asked["params"] == 3_600_000_000


def test_what_is_no_number_is_told_and_kept(tmp_path):
    text = "step_seconds,chips,hardware\nfast,8,h100\n1.5,8,h1000\n-,8,h100\n"
    found = read_table(table(tmp_path, text))
    assert [record.measured for record in found.records] == [
        None,
        {
            "step_seconds": {"median": 1.5},
            "tokens_per_second": None,
            "peak_bytes": None,
        },
        None,
    ]
    assert found.records[0].asked["imported"]["step_seconds"] == "fast"
    assert any("line 2" in said and "'fast'" in said for said in found.complaints)
    assert any("line 3" in said and "h1000" in said for said in found.complaints)
    assert len(found.complaints) == 2


def test_records_are_records(tmp_path):
    for record in read_table(table(tmp_path, WANDB)).records:
        again = type(record).from_json(record.to_json())
        assert again == record
        assert json.loads(record.to_json())["asked"]["imported"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ("step_seconds\n", "no rows"),
        ("a,b\n1,2\n", "no column that says how long"),
    ],
)
def test_what_is_no_table_of_runs(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        read_table(table(tmp_path, text))


def test_no_text(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(b"\xff\xfe\x00step")
    with pytest.raises(ValueError, match="no text"):
        read_table(path)
