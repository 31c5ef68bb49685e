"""Run records: what a file of them survives."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from scaling_lab import record
from scaling_lab.record import RunRecord


def made(number=0, **changes):
    fields = {"id": f"run{number}", "environment": "e", "status": "ok", "asked": {}}
    return RunRecord(**(fields | changes))


def script(body):
    """Python for another process, which imports nothing but the record room."""
    return [sys.executable, "-c", "from scaling_lab import record\n" + body]


WRITER = textwrap.dedent("""
    import sys
    path, who, lines = sys.argv[1:]
    for number in range(int(lines)):
        record.append(path, record.RunRecord(
            f"{who}-{number}", "e", "ok", {"text": "word " * (number % 50)}))
        print(number, flush=True)
""")


def test_a_record_comes_back(tmp_path):
    full = made(
        status="oom",
        reason="8 GB asked, 4 GB there",
        asked={"layout": "fsdp=8", "widths": [1, 2]},
        predicted={"step_seconds": 0.5},
        measured=None,
        provenance={"host": "ünïcode\n"},
    )
    record.append(tmp_path, full)
    record.append(tmp_path / "records.jsonl", made(1))
    assert record.read(tmp_path) == [full, made(1)]
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 2


def test_missing_is_null_and_so_is_what_is_no_number():
    loss = {"loss": math.nan, "all": [1.0, math.inf, (-math.inf,)], "step": 3, 4: None}
    line = made(measured=loss).to_json()
    found = json.loads(line)["measured"]
    assert found == {"loss": None, "all": [1.0, None, [None]], "step": 3, "4": None}
    assert json.loads(line)["predicted"] is None


@pytest.mark.parametrize("status", ["illegal", "oom", "crashed", "timeout", "stale"])
def test_a_failure_needs_a_reason(status):
    assert made(status=status, reason="because").reason == "because"
    for reason in (None, ""):
        with pytest.raises(ValueError, match=f"run0: status '{status}' needs a reason"):
            made(status=status, reason=reason)


def test_an_unknown_status():
    with pytest.raises(ValueError, match="status 'fine' is not one of"):
        made(status="fine")


def test_a_newer_schema_is_refused():
    newer = dataclasses.replace(made(), schema=record.SCHEMA + 1).to_json()
    with pytest.raises(ValueError, match="run0 has schema 2, this version reads up"):
        RunRecord.from_json(newer)


def test_fields_of_an_older_version_are_passed_over():
    data = json.loads(made().to_json()) | {"colour": "blue"}
    assert RunRecord.from_json(json.dumps(data)) == made()


@pytest.mark.parametrize("line", ["[]", '"text"', '{"id": "x"}', '{"status": "ok"}'])
def test_no_record(line):
    with pytest.raises(ValueError, match="not a run record"):
        RunRecord.from_json(line)


def test_digest_is_of_the_meaning():
    assert record.digest({"a": 1, "b": [2]}) == record.digest({"b": [2], "a": 1})
    assert record.digest({"a": 1}) != record.digest({"a": 2})
    assert len(record.digest({})) == 16
    with pytest.raises(ValueError, match="Out of range"):
        record.digest({"a": math.nan})


def test_latest_of_every_id():
    first, second, again = made(0), made(1), made(0, status="oom", reason="r")
    found = record.latest([first, second, again])
    assert list(found.items()) == [("run0", again), ("run1", second)]


def test_no_file_says_what_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no records at .*scaling-lab sweep"):
        record.read(tmp_path)


# --- What a file survives


def test_a_torn_line_costs_only_itself(tmp_path):
    record.append(tmp_path, made(0))
    path = tmp_path / "records.jsonl"
    torn = made(1).to_json().encode()[:40]
    with path.open("ab") as file:
        file.write(torn)
    with pytest.warns(UserWarning, match=r"1 unreadable line\(s\) set aside in record"):
        assert record.read(tmp_path) == [made(0)]
    record.append(tmp_path, made(2))
    with pytest.warns(UserWarning, match="the other records are intact"):
        assert record.read(tmp_path) == [made(0), made(2)]
    # Set aside once, however often it is met; the file itself only grows.
    aside = tmp_path / "records.jsonl.damaged"
    assert aside.read_bytes() == torn + b"\n"
    assert torn in path.read_bytes()


def test_a_line_that_is_no_text_is_set_aside(tmp_path):
    record.append(tmp_path, made(0))
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n\n{}\n")
    with pytest.warns(UserWarning, match=r"2 unreadable line\(s\)"):
        assert record.read(tmp_path) == [made(0)]


def test_several_writers_lose_nothing(tmp_path):
    writers, lines = 4, 100
    running = [
        subprocess.Popen(
            [*script(WRITER), str(tmp_path), str(who), str(lines)],
            stdout=subprocess.DEVNULL,
        )
        for who in range(writers)
    ]
    assert [writer.wait() for writer in running] == [0] * writers
    found = [entry.id for entry in record.read(tmp_path)]
    assert len(found) == writers * lines
    for who in range(writers):  # each writer's in its own order
        mine = [name for name in found if name.startswith(f"{who}-")]
        assert mine == [f"{who}-{number}" for number in range(lines)]


def test_a_killed_writer_loses_at_most_the_line_in_flight(tmp_path):
    said = []
    for who in range(3):
        with subprocess.Popen(
            [*script(WRITER), str(tmp_path), str(who), "100000"],
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                if int(line) == 5 + 10 * who:
                    os.kill(writer.pid, signal.SIGKILL)
                    break
            last = [int(line) for line in writer.stdout if line.endswith("\n")]
            said += [f"{who}-{n}" for n in range((last or [5 + 10 * who])[-1] + 1)]
    record.append(tmp_path, made(9))
    found = [entry.id for entry in record.read(tmp_path)]
    assert set(said) <= set(found)
    assert found[-1] == "run9"


def test_a_write_cut_short_is_finished(tmp_path, monkeypatch):
    """The system may write less than asked."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    record.append(tmp_path, made(0))
    record.append(tmp_path, made(1))
    assert record.read(tmp_path) == [made(0), made(1)]


def test_the_room_opens_without_jax():
    body = "import sys; print([m for m in ('jax', 'numpy') if m in sys.modules])"
    done = subprocess.run(script(body), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
