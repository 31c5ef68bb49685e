"""`explain --compiled` and `diff` as people call them."""

import json
import sys

import pytest

from scaling_lab import cli, record
from scaling_lab.config import configure
from scaling_lab.record import RunRecord
from scaling_lab.sweep import run as run_room

STEP = "--size toy --batch 8 --length 32 --remat full --target tpu-v5p:2x2x1"
#: One gather of a weight, and a product that it is for.
MODULE = """HloModule step, is_scheduled=true, num_partitions=4

%f (q: bf16[8,64]) -> bf16[8,64] {
  ROOT %q = bf16[8,64]{1,0} parameter(0)
}

ENTRY %main (p: bf16[8,64]) -> bf16[32,64] {
  %p = bf16[8,64]{1,0} parameter(0), metadata={op_name="state.params['gate_DF']"}
  %g = bf16[32,64]{1,0} KIND(%p), channel_id=1, replica_groups={{0,1,2,3}}, \
dimensions={0}, use_global_device_ids=true
  ROOT %y = bf16[32,64]{1,0} fusion(%g), kind=kLoop, calls=%f, \
metadata={op_name="jit(step)/jvp()/ffn/gate/BTD,DF->BTF/dot_general"}, \
backend_config={"estimated_cycles":"1750000"}
}
"""


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALING_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(cli.warnings, "showwarning", cli.warnings.showwarning)

    def run(words):
        monkeypatch.setattr(sys, "argv", ["scaling-lab", *words.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


def saved(tmp_path, kind="all-gather"):
    path = tmp_path / "step.txt"
    path.write_text(MODULE.replace("KIND", kind))
    return path


def test_a_saved_module_is_explained(call, tmp_path):
    words = f"explain {STEP} --layout fsdp=4 --module {saved(tmp_path)}"
    code, out, err = call(words)
    assert (code, err) == (0, "")
    assert "1.00 ms by the compiler's own estimates" in out
    assert "ffn/gate" in out and "fsdp" in out
    assert "nothing is resharded" in out
    _, out, _ = call(f"{words} --json")
    found = json.loads(out)
    assert found["scheduled_seconds"] == pytest.approx(1e-3)
    assert found["by_axis"]["fsdp"]["collective_bytes"] == 32 * 64 * 2
    assert found["unasked"] == []


def test_what_nobody_asked_for_is_named_with_its_verb(call, tmp_path):
    module = saved(tmp_path, "all-to-all")
    _, out, _ = call(f"explain {STEP} --layout fsdp=4 --module {module}")
    assert "nobody asked for: all-to-all over fsdp by ffn/gate" in out


def test_a_module_of_another_mesh_is_refused(call, tmp_path):
    module = saved(tmp_path)
    code, _, err = call(
        f"explain {STEP.replace('2x2x1', '2x2x2')} --layout fsdp=8 --module {module}"
    )
    assert code == 2 and "4 partitions" in err and "8 devices" in err


def test_two_layouts_differ_in_what_they_imply(call):
    code, out, err = call(f"diff fsdp=4 fsdp=2,tensor=2 {STEP} --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    gate = found["sharding"]["parameter layers/gate_LDF"]
    assert (gate["a"], gate["b"]) == ("L, D@fsdp, F", "L, D@fsdp, F@tensor")
    assert gate["a_bytes"] == gate["b_bytes"]
    rows = {(row["kind"], *row["axes"]): row for row in found["collectives"]}
    assert rows["all-reduce", "tensor"]["a"] == 0 < rows["all-reduce", "tensor"]["b"]
    assert rows["all-gather", "fsdp"]["ratio"] == pytest.approx(0.5, rel=0.01)
    code, out, _ = call(f"diff fsdp=4 fsdp=2,tensor=2 {STEP}")
    assert "D@fsdp, F@tensor" in out and "all-reduce over tensor" in out
    assert "predicted parameter bytes" in out


def test_two_layouts_differ_in_predicted_time(call):
    words = "--size 8b --target tpu-v5p:4x4x4 --batch 128 --length 4096 --json"
    code, out, err = call(f"diff fsdp=64 fsdp=16,tensor=4 {words}")
    assert (code, err) == (0, "")
    figures = json.loads(out)["figures"]
    row = figures["predicted step seconds"]
    assert 0.1 < row["a"] < row["b"] < 10 and row["ratio"] == row["b"] / row["a"]
    assert figures["predicted tensor exposed seconds"]["a"] is None
    assert figures["predicted tensor exposed seconds"]["b"] > 0


def row_of(layout, seconds):
    config = configure(target="cpu:4", layout=layout, batch=8, length=32)
    moved = {"kind": "all-gather", "axes": ["fsdp"], "count": 1, "bytes": 1000}
    return RunRecord(
        id=config.id,
        environment="e",
        status="ok",
        asked=run_room.asked(config),
        compiled={"peak_bytes": 2**20, "step_seconds": seconds, "collectives": [moved]},
        measured={"step_seconds": {"median": 2 * seconds}},
    )


def test_two_records_differ_in_what_was_compiled_and_measured(call, tmp_path):
    rows = [row_of("fsdp=4", 0.5), row_of("fsdp=2,tensor=2", 0.25)]
    for row in rows:
        record.append(tmp_path / "runs", row)
    code, out, err = call(f"diff runs#{rows[0].id} runs#{rows[1].id[:6]} --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["figures"]["compiled step seconds"]["ratio"] == 0.5
    measured = found["figures"]["measured step seconds"]
    assert measured == {"a": 1.0, "b": 0.5, "ratio": 0.5}
    assert found["asked"]["mesh"]["b"] == {"fsdp": 2, "tensor": 2}
    assert found["collectives_from"] == {"a": "compiled", "b": "compiled"}


def test_answers_of_the_compile_verb_differ_too(call, tmp_path):
    for name, seconds in (("a", 0.5), ("b", 0.4)):
        row = row_of("fsdp=4", seconds)
        answer = {**row.compiled, "asked": row.asked, "status": "ok"}
        (tmp_path / f"{name}.json").write_text(json.dumps(answer))
    _, out, _ = call("diff a.json b.json --json")
    found = json.loads(out)
    assert found["figures"]["compiled step seconds"]["ratio"] == pytest.approx(0.8)
    assert found["sharding"] == {} and found["asked"] == {}
    code, out, _ = call(
        "diff a.json fsdp=2,tensor=2 --target cpu:4 --batch 8 --length 32"
    )
    assert code == 0 and "compiled against implied by the layout" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("diff runs#abc fsdp=4", "no records at runs"),
        ("diff odd.json fsdp=4", "no 'asked'"),
        ("diff fsdp=4 fsdq=4", "fsdq"),
    ],
)
def test_bad_sides_are_explained(words, said, call, tmp_path):
    (tmp_path / "odd.json").write_text("{}")
    code, _, err = call(f"{words} --target cpu:4 --batch 8")
    assert code == 2 and said in err


def test_a_record_that_is_not_there_is_told_from_those_that_are(call, tmp_path):
    row = row_of("fsdp=4", 0.5)
    record.append(tmp_path / "runs", row)
    code, _, err = call("diff runs#zzz runs#zzz")
    assert code == 2 and "no record of runs" in err and row.id in err
