"""The interactive page without a browser: its data, its libraries, and its server."""

from __future__ import annotations

import hashlib
import html
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from scaling_lab.record import FILE_NAME, RunRecord, append
from scaling_lab.studies import live, report

ROOT = Path(__file__).parents[1]


def run(id: str, layout: str = "fsdp=8", size: str = "8b", **words: Any) -> RunRecord:
    """A run at three levels; ``words`` change what was asked."""
    seconds = words.pop("seconds", (1.0, 1.1, 1.2))
    status = words.pop("status", "ok")
    predicted, compiled, measured = seconds
    asked = {"family": "llama", "size": size, "layout": layout, "target": "h100:1x8"}
    asked |= {"simulated": False, "devices": 8, "batch": 8, "length": 512, "steps": 3}
    asked |= {
        "seed": 0,
        "params": 1000,
        "tokens_per_step": 4096,
        "precision": "float32",
    }
    return RunRecord(
        id=id,
        environment="e",
        status=status,
        reason=None if status == "ok" else "why not",
        asked=asked | words,
        predicted=predicted
        and {
            "step_seconds": predicted,
            "step_seconds_low": predicted * 0.8,
            "step_seconds_high": predicted * 1.25,
            "hbm_bytes": 4e9,
        },
        compiled=compiled and {"step_seconds": compiled, "peak_bytes": 5 * 10**9},
        measured=measured and {"step_seconds": {"median": measured, "repeats": 3}},
    )


def valley(budgets: tuple[float, ...] = (3e12, 1e13, 3e13, 1e14)) -> list[RunRecord]:
    """Runs on parabolas whose lowest losses are 2 + 40 C^-0.1, at N* = C^0.5 / 10."""
    found = []
    for budget in budgets:
        for side in (-1.2, -0.6, 0.0, 0.6, 1.2):
            params = round(2.718281828**side * budget**0.5 / 10)
            loss = 2 + 40 * budget**-0.1 + 0.05 * side**2
            steps = round(budget / (6 * params * 100))
            one = run(f"{budget:.0e}{side}", size=f"{params}", seconds=(0, 0, 1.0))
            one.asked.update(params=params, tokens_per_step=100, steps=steps)
            assert one.measured is not None
            one.measured["loss"] = {"final": loss, "steps": [1], "values": [9.0]}
            found.append(one)
    return found


def data_of(page: Path | str) -> dict[str, Any]:
    text = page.read_text("utf-8") if isinstance(page, Path) else page
    block = re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    return json.loads(block[1])


# --- What is plotted


def test_levels_meet_in_pairs_with_the_interval(tmp_path: Path) -> None:
    runs = [
        run("a"),
        run("b", seconds=(2.0, None, 3.0)),
        run("c", seconds=(4, 5, None)),
    ]
    data = data_of(report(runs, tmp_path / "p.html"))
    seconds, memory = data["agreement"]
    pairs = {(each["x"], each["y"]): each for each in seconds["panels"]}
    assert {pair: len(panel["points"]) for pair, panel in pairs.items()} == {
        ("predicted", "compiled"): 2,
        ("predicted", "measured"): 2,
        ("compiled", "measured"): 1,
    }
    first = pairs["predicted", "measured"]
    assert seconds["unit"] == "s" and first["band"] == pytest.approx([0.8, 1.25])
    assert [each["y"] for each in first["points"]] == [1.2, 3.0]
    assert first["points"][1]["low"] == pytest.approx(1.6)
    assert pairs["compiled", "measured"]["band"] is None
    assert memory["name"] == "peak_bytes" and memory["panels"][0]["band"] is None


def test_seconds_of_simulated_devices_are_compared_with_nothing(tmp_path: Path) -> None:
    simulated = run("a", simulated=True, target="cpu:8")
    seconds, _ = data_of(report([simulated], tmp_path / "p.html"))["agreement"]
    assert [(each["x"], each["y"]) for each in seconds["panels"]] == [
        ("predicted", "compiled")
    ]


def test_a_sum_with_an_unknown_part_is_unknown(tmp_path: Path) -> None:
    pair = [run("a"), run("b")]
    for one, more in zip(pair, (7, None), strict=True):
        assert one.predicted and one.compiled
        one.predicted["collective_bytes"] = 10
        one.compiled["collectives"] = [{"bytes": 2}, {"bytes": more}]
    *_, moved = data_of(report(pair, tmp_path / "p.html"))["agreement"]
    (panel,) = moved["panels"]
    assert [(each["run"], each["y"]) for each in panel["points"]] == [("run-a", 9)]


def test_the_frontier_is_that_of_the_runs(tmp_path: Path) -> None:
    loss = data_of(report(valley(), tmp_path / "p.html"))["loss"]
    assert len(loss["points"]) == 20 and len(loss["optima"]) == 4
    assert "C^0.50" in loss["words"]
    for each in (loss["frontier"][0], loss["frontier"][-1]):
        assert each["y"] == pytest.approx(2 + 40 * each["x"] ** -0.1, rel=2e-3)


def test_compute_is_of_the_parameters_that_are_multiplied(tmp_path: Path) -> None:
    runs = valley()[:3]
    runs[2].asked["params_without_embedding"] = runs[2].asked["params"] // 2
    loss = data_of(report(runs, tmp_path / "p.html"))["loss"]
    asked = runs[2].asked
    tokens = asked["steps"] * asked["tokens_per_step"]
    assert loss["points"][2]["x"] == 6 * (asked["params"] // 2) * tokens
    assert loss["points"][1]["x"] == pytest.approx(3e12, rel=1e-3)


def test_no_frontier_says_why(tmp_path: Path) -> None:
    few = data_of(report(valley((3e12, 1e13)), tmp_path / "p.html"))["loss"]
    assert not few["frontier"] and "needs four budgets" in few["words"]
    two = valley()[:2]
    told = data_of(report(two, tmp_path / "p.html"))["loss"]
    assert not told["frontier"] and told["words"].startswith("No frontier is fitted: ")


def test_runs_of_one_compute_have_no_plot_of_it(tmp_path: Path) -> None:
    pair = [run("a"), run("b", layout="tensor=8")]
    for one in pair:
        assert one.measured is not None
        one.measured["loss"] = {"final": 2.0}
    path = report(pair, tmp_path / "p.html")
    assert data_of(path)["loss"] is None
    assert "Loss against compute" not in path.read_text()


def test_runs_link_to_their_lines_in_the_records(tmp_path: Path) -> None:
    for one in (run("a", status="oom"), run("b"), run("a")):
        append(tmp_path / "in here", one)
    text = report(tmp_path / "in here", tmp_path / "page.html").read_text()
    links = re.findall(r'<a class="to-record" href="([^"]*)">([^<]*)</a>', text)
    links = links or re.findall(
        r'<a href="([^"]*)" class="to-record">([^<]*)</a>', text
    )
    assert links == [
        ("in%20here/records.jsonl", "records.jsonl, line 3"),
        ("in%20here/records.jsonl", "records.jsonl, line 2"),
    ]


# --- The libraries


def test_libraries_are_what_npm_holds() -> None:
    folder = resources.files("scaling_lab.studies") / "vendored"
    said = re.findall(
        r"`([\w.-]+\.js)` \|.*`([0-9a-f]{64})`", (folder / "README.md").read_text()
    )
    assert len(said) == 3
    for name, digest in said:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        licence = folder / f"LICENSE.{name.removesuffix('.min.js')}"
        assert "Redistribution and use" in licence.read_text()


def test_a_page_without_plots_carries_no_libraries(tmp_path: Path) -> None:
    failed = run("a", status="illegal", seconds=(None, None, None))
    bare = report([failed], tmp_path / "bare.html").read_text()
    drawn = report([run("a")], tmp_path / "drawn.html").read_text()
    assert "vegaEmbed=" not in bare and drawn.count("vegaEmbed=") == 1
    assert "University of Washington" in drawn and len(bare) < 100_000


# --- The server


@contextmanager
def serving(folder: Path) -> Iterator[ThreadingHTTPServer]:
    server = live.server_of(live.Records(folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server: ThreadingHTTPServer, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_server_gives_the_page_and_what_changed(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        status, page = ask(server, "/")
        assert status == 200 and "No run has ended yet" in page
        assert "connect-src 'self'" in html.unescape(page)
        append(tmp_path, run("a"))
        status, main = ask(server, "/main?after=none")
        state = re.search(r'data-state="(\w+)"', main)
        assert status == 200 and main.startswith("<main") and state is not None
        assert ask(server, f"/main?after={state[1]}") == (304, "")
        append(tmp_path, run("b"))
        status, main = ask(server, f"/main?after={state[1]}")
        assert status == 200 and len(data_of(main)["runs"]) == 2
        assert ask(server, f"/{FILE_NAME}")[1].count("\n") == 2
        assert ask(server, "/../etc/passwd")[0] == 404
        (tmp_path / FILE_NAME).write_text("nonsense\n")
        with pytest.warns(UserWarning, match="unreadable"):
            status, said = ask(server, "/main?after=none")
        assert status == 500 and "no readable run" in said


def test_the_server_answers_to_its_own_address_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert ask(server, "/", Host="localhost:1")[0] == 200
        assert ask(server, "/", Host="[::1]:1")[0] == 200
        for name in ("evil.example", "127.evil.example", ""):
            assert ask(server, "/", Host=name)[0] == 403


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at .*nowhere; a sweep"):
        live.Records(tmp_path / "nowhere")
    records = live.Records(tmp_path)
    with serving(tmp_path) as server:
        port = server.server_address[1]
        with pytest.raises(ValueError, match=rf"port {port} .* is taken; \d+ is free"):
            live.server_of(records, port=port)
    with pytest.raises(ValueError, match="port 70000 is none"):
        live.server_of(records, port=70000)
    with pytest.raises(ValueError, match="is none of this machine's"):
        live.server_of(records, "192.0.2.1")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(
    tmp_path: Path, ending: signal.Signals
) -> None:
    append(tmp_path, run("a"))
    command = [sys.executable, "-c", "from scaling_lab.cli import main; main()"]
    command += ["serve-report", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found is not None, line + process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        # The browser's connection stays open, and must not keep the server.
        process.send_signal(ending)
        said, errors = process.communicate(timeout=20)
        connection.close()
    assert process.returncode == 0 and "ended" in said and not errors
