"""Records to tables and to the report page."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling_lab.record import FILE_NAME, RunRecord, append
from scaling_lab.studies import COLUMNS, frame, report, select, table, write_table
from scaling_lab.studies.plain import known

MIB = 1024**2
HOSTILE = (
    '</td><script>alert("1")</script>&lt;\x1b[31m\x00\ud800 "><img src=x onerror=y>'
)


def asked(layout: str, **changes: Any) -> dict[str, Any]:
    mesh = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", layout)}
    return {
        "family": "llama",
        "size": "toy",
        "layout": layout,
        "layout_name": "_".join(mesh),
        "mesh": mesh,
        "target": "cpu:8",
        "simulated": True,
        "devices": 8,
        "batch": 16,
        "length": 256,
        "steps": 3,
        "seed": 0,
        "remat": "none",
        "precision": "float32",
        "accumulate": 1,
        "optimizer": "adamw",
        "params": 1000,
        "params_without_embedding": 900,
        "tokens_per_step": 4096,
        "data": {"source": ["python"], "digest": "d1", "tokenizer": "byte"},
        "config": {"layout": mesh, "optimizer": {"rate": 1e-3}},
    } | changes


def ok(id: str, layout: str, loss: float = 2.0, peak: int = 10, **changes: Any):
    seconds = {"median": 0.1, "p5": 0.09, "p95": 0.12, "repeats": 3}
    return RunRecord(
        id=id,
        environment="e",
        status="ok",
        asked=asked(layout, **changes),
        compiled={
            "compile_seconds": 2.5,
            "cache_hit": False,
            "argument_bytes": 6 * MIB,
            "output_bytes": 6 * MIB,
            "temporary_bytes": 4 * MIB,
            "alias_bytes": 6 * MIB,
            "peak_bytes": peak * MIB,
            "collectives": [
                {"kind": "all-gather", "axes": ["fsdp"], "count": 2, "bytes": 3 * MIB},
                {"kind": "all-reduce", "axes": ["fsdp"], "count": 1, "bytes": MIB},
                {"kind": "all-reduce", "axes": ["data", "fsdp"], "bytes": 2 * MIB},
            ],
        },
        measured={
            "step_seconds": seconds | {"all": [0.09, 0.1, 0.12]},
            "tokens_per_second": 40960.0,
            "peak_bytes": None,
            "loss": {"steps": [1, 2, 3], "values": [4.0, 3.0, loss], "final": loss},
            "held_out": {"steps": [3], "bits_per_byte": [2.9], "final": 2.9},
            "flops_per_token": {"6N": 6000.0},
            "mfu": {"6N": 0.4, "palm_full_attention": None},
            "hfu": None,
        },
        provenance={
            "versions": {"jax": "0.10.2"},
            "host": {"name": "node", "cpus": 2, "memory_bytes": 2**33},
            "git": {"commit": "abc123", "dirty": True},
            "started": "2026-07-01T00:00:00Z",
            "seconds": 12.3,
        },
    )


def failed(id: str, layout: str, status: str = "oom", reason: str = "too big"):
    return RunRecord(id, "e", status, asked(layout), reason=reason)


@pytest.fixture
def runs() -> list[RunRecord]:
    return [
        ok("a", "fsdp=8", loss=2.0, peak=10),
        ok("b", "fsdp=4,tensor=2+sequence", loss=2.0 + 4e-6, peak=8),
        ok("c", "tensor=8", loss=2.0 + 2e-6, peak=12, batch=32),
        failed("d", "tensor=16", "illegal", "16 does not divide K=4"),
    ]


def bare() -> list[RunRecord]:
    nothing: dict[str, Any] = {name: None for name in asked("fsdp=8")}
    holes = {"step_seconds": None, "loss": {"steps": None, "values": [None, "x"]}}
    wrong = {"peak_bytes": "big", "collectives": [{"axes": None}, 3]}
    return [
        RunRecord("1", "e", "ok", {}),
        RunRecord("2", "e", "ok", nothing, compiled={}, measured={}, predicted={}),
        RunRecord("3", "e", "ok", nothing, compiled=wrong, measured=holes),
        RunRecord("4", "e", "crashed", nothing, reason="r", provenance={"git": None}),
    ]


def cell(rows: pd.DataFrame, id: str, name: str) -> Any:
    return rows.set_index("id").loc[id, name]


def test_columns_hold_what_the_record_says(runs: list[RunRecord]) -> None:
    rows = frame(runs)
    assert set(rows.columns) >= {column.name for column in COLUMNS}
    assert not [column.name for column in COLUMNS if not column.meaning]
    assert cell(rows, "a", "mesh") == "fsdp=8"
    assert cell(rows, "a", "data_digest") == "d1"
    assert cell(rows, "a", "peak_bytes") == 10 * MIB
    assert cell(rows, "a", "collective_bytes") == 6 * MIB
    assert cell(rows, "a", "collective_bytes_fsdp") == 4 * MIB
    assert cell(rows, "a", "collective_bytes_data+fsdp") == 2 * MIB
    assert cell(rows, "a", "step_seconds_p95") == 0.12
    assert cell(rows, "a", "tokens_per_second_per_device") == 5120.0
    assert cell(rows, "a", "mfu_6N") == 0.4
    assert cell(rows, "a", "jax") == "0.10.2"
    assert "mfu_palm_full_attention" not in rows
    assert not [name for name in rows if str(name).startswith("predicted")]


def test_missing_is_missing_and_not_zero(runs: list[RunRecord]) -> None:
    rows = frame(runs)
    for name in ("peak_bytes", "collective_bytes_fsdp", "loss", "repeats"):
        assert pd.isna(cell(rows, "d", name)), name
    assert str(rows["peak_bytes"].dtype) == "Int64"


def test_an_axis_without_traffic_is_zero_where_compiled() -> None:
    quiet = ok("q", "data=1")
    assert quiet.compiled is not None
    quiet.compiled["collectives"] = []
    rows = frame([ok("a", "fsdp=8"), quiet])
    assert cell(rows, "q", "collective_bytes") == 0
    assert cell(rows, "q", "collective_bytes_fsdp") == 0


def test_bytes_of_an_unknown_collective_leave_the_sum_unknown() -> None:
    run = ok("a", "fsdp=8")
    assert run.compiled is not None
    run.compiled["collectives"][0]["bytes"] = None
    rows = frame([run])
    assert pd.isna(cell(rows, "a", "collective_bytes"))
    assert cell(rows, "a", "collective_bytes_data+fsdp") == 2 * MIB


def test_the_latest_run_of_an_id_counts(tmp_path: Path) -> None:
    for run in (failed("a", "fsdp=8"), ok("b", "tensor=8"), ok("a", "fsdp=8")):
        append(tmp_path, run)
    rows = frame(tmp_path)
    assert rows["id"].tolist() == ["a", "b"]
    assert rows["status"].tolist() == ["ok", "ok"]
    assert frame(tmp_path / FILE_NAME).equals(rows)


def test_predictions_get_columns_once_some_run_has_one() -> None:
    run = ok("a", "fsdp=8")
    object.__setattr__(run, "predicted", {"step_seconds": 0.2, "peak_bytes": MIB})
    rows = frame([run, ok("b", "tensor=8")])
    assert cell(rows, "a", "predicted_peak_bytes") == MIB
    assert pd.isna(cell(rows, "b", "predicted_step_seconds"))
    assert "predicted" in table(rows).splitlines()[2]


def test_losses_are_compared_within_one_question_only(runs: list[RunRecord]) -> None:
    rows = frame(runs)
    assert cell(rows, "a", "loss_relative_difference") == 0
    assert cell(rows, "b", "loss_relative_difference") == pytest.approx(2e-6)
    assert cell(rows, "b", "loss_reference") == "a"
    assert pd.isna(cell(rows, "c", "loss_relative_difference"))  # another batch


def test_another_learning_rate_is_another_question() -> None:
    other = ok("b", "tensor=8", loss=3.0, config={"optimizer": {"rate": 2e-3}})
    rows = frame([ok("a", "fsdp=8"), other])
    assert not known(rows, "loss_relative_difference")


def test_runs_that_differ_out_of_sight_are_told_apart(tmp_path: Path) -> None:
    configs = [{"stack": "scan"}, {"stack": "unroll"}]
    runs = [ok(f"id{n}", "fsdp=8", config=each) for n, each in enumerate(configs)]
    assert cell(frame(runs), "id1", "loss_relative_difference") == 0
    text = Page(report(runs, tmp_path / "page.html").read_text("utf-8")).text
    assert "fsdp=8 · run id0" in text and "fsdp=8 · run id1" in text


def test_one_broken_layout_is_not_the_reference() -> None:
    losses = {"a": 9.0, "b": 2.0, "c": 2.0}
    rows = frame([ok(id, f"fsdp={id}", loss=loss) for id, loss in losses.items()])
    assert cell(rows, "a", "loss_relative_difference") == 3.5
    text = table(rows)
    assert "4e+00 ✗" in text and "0 ✓" in text and "reference" in text


def test_bfloat16_losses_are_shown_and_not_judged() -> None:
    pair = [("a", 2.0), ("b", 2.01)]
    rows = frame([ok(id, f"fsdp={id}", loss=x, precision="bfloat16") for id, x in pair])
    assert "5e-03" in table(rows)
    assert not set("✓✗") & set(table(rows))


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["layout=fsdp=8"], "a"),
        (["layout=*tensor*"], "bcd"),
        (["layout!=fsdp=8"], "bcd"),
        (["status!=ok"], "d"),
        (["batch>=32"], "c"),
        (["batch < 32", "status=ok"], "ab"),
        (["peak_bytes<=8MiB"], "b"),
        (["step_seconds>50ms"], "abc"),
        (["simulated=yes"], "abcd"),
        (["loss=none"], "d"),
        (["remat=none"], "abcd"),
        (["started>=2026-06-30"], "abc"),
        (["collective_bytes_data+fsdp>0"], "abc"),
        (["batch=99"], ""),
    ],
)
def test_filters(runs: list[RunRecord], filters: list[str], ids: str) -> None:
    assert "".join(select(frame(runs), filters)["id"]) == ids


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lyout=fsdp", "nearest: layout"),
        ("batch>=many", "batch is a number and 'many' is not one"),
        ("peak_bytes<3parsecs", "units: B, KiB"),
        ("batch=1,5", "is not one"),
        ("layout<fsdp", "layout is a text, which has no order"),
        ("cache_hit=maybe", "yes or no"),
        ("status", "COLUMN OPERATOR VALUE"),
        ("=ok", "COLUMN OPERATOR VALUE"),
    ],
)
def test_filter_errors_say_what_to_write(
    runs: list[RunRecord], text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        select(frame(runs), [text])


def test_sort_keeps_missing_last_both_ways(runs: list[RunRecord]) -> None:
    rows = frame(runs)
    assert "".join(select(rows, sort="peak_bytes")["id"]) == "bacd"
    assert "".join(select(rows, sort="peak_bytes", descending=True)["id"]) == "cabd"
    with pytest.raises(ValueError, match="nearest:.*peak_bytes"):
        select(rows, sort="peak_byte")


def test_simulated_tables_lead_with_memory_and_do_not_rank(
    runs: list[RunRecord],
) -> None:
    text = table(frame(runs))
    heading = next(line for line in text.splitlines() if line.startswith("asked"))
    names = ("compiled", "collectives by axis", "measured", "simulated: do not rank")
    places = [heading.index(name) for name in names]
    assert places == sorted(places)
    titles = text.splitlines()[text.splitlines().index(heading) + 1]
    assert titles.index("peak") < titles.index("data+fsdp") < titles.index("difference")
    assert places[-1] <= titles.index("step") < titles.index("tokens/s")
    assert "MiB" in text and "ms" in text


def test_real_tables_lead_with_speed_and_stand_apart(runs: list[RunRecord]) -> None:
    real = ok("r", "fsdp=8", simulated=False, target="h100:8")
    alone = table(frame([real]))
    assert "do not rank" not in alone
    assert alone.index("tokens/s") < alone.index("loss")
    both = table(frame([*runs, real]))
    assert both.count("asked") == 2 and both.count("simulated: do not rank") == 1


def test_columns_asked_for_still_carry_the_warning(runs: list[RunRecord]) -> None:
    text = table(frame(runs), ["layout", "tokens_per_second"])
    assert "simulated: do not rank" in text and "peak" not in text
    with pytest.raises(ValueError, match="tokens_per_second"):
        table(frame(runs), ["tokens_per_secnd"])


def test_every_failure_is_a_row_with_its_reason(runs: list[RunRecord]) -> None:
    text = table(frame(runs))
    assert text.startswith("4 runs: 3 ok, 1 illegal")
    assert "tensor=16 · illegal: 16 does not divide K=4" in text
    hostile = table(frame([failed("x", "fsdp=8", reason=HOSTILE)]))
    assert "\x1b" not in hostile and "\x00" not in hostile
    assert table(select(frame(runs), ["status=timeout"])) == "no run matches"


def test_files_round_trip(runs: list[RunRecord], tmp_path: Path) -> None:
    rows = frame([*runs, failed("x", "fsdp=8", reason=HOSTILE)])
    kept = write_table(rows, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(kept), rows)
    found = json.loads(write_table(rows, tmp_path / "t.json").read_text())
    assert found[1]["loss"] == 2.0 + 4e-6 and found[3]["loss"] is None
    assert found[0]["peak_bytes"] == 10 * MIB
    with write_table(rows, tmp_path / "t.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[1]["layout"] == "fsdp=4,tensor=2+sequence"
    assert float(lines[1]["loss"]) == 2.0 + 4e-6 and lines[3]["loss"] == ""
    assert len(list(tmp_path.iterdir())) == 3  # nothing half-written beside them


def test_table_files_that_cannot_be_written(
    runs: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = frame(runs)
    with pytest.raises(ValueError, match=r"\.xlsx is none of \.csv"):
        write_table(rows, tmp_path / "t.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"scaling-lab\[parquet\]"):
        write_table(rows, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """Tags, what they would fetch, and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "data", "srcset") and value:
                self.fetched.append(value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_report_is_one_file_that_fetches_nothing(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    for run in runs:
        append(tmp_path, run)
    path = report(tmp_path)
    assert path == tmp_path / "report.html"
    assert {each.name for each in tmp_path.iterdir()} == {FILE_NAME, "report.html"}
    text = path.read_text("utf-8")
    found = Page(text)
    links = {link for link in found.fetched if not link.startswith("#run-")}
    assert len(found.fetched) > 8 and links == {FILE_NAME}
    assert not re.search(r"url\(|@import|https?://", text)
    assert not {"link", "img", "iframe", "object"} & set(found.tags)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
    policy = html.unescape(text)
    assert len(scripts) == 2 and "default-src 'none'" in policy
    assert f"script-src {allowed};" in policy and "unsafe-eval" not in policy


def test_report_shows_the_runs_and_why_some_failed(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    text = Page(report(runs, tmp_path / "page.html").read_text("utf-8")).text
    assert "3 of 4" in text and "4 runs: 3 ok, 1 illegal" in text
    assert "16 does not divide K=4" in text
    for caption in ("Peak memory", "Collective bytes", "Loss, and", "Step-time spread"):
        assert caption in text
    assert text.index("Peak memory by layout") < text.index("Throughput by layout")
    assert "Speed — simulated: do not rank" in text
    assert "highest tokens per second" not in text
    assert "3 timed steps a run" in text and "abc123" in text


def test_report_of_real_devices_leads_with_throughput(tmp_path: Path) -> None:
    real = {"simulated": False, "target": "h100:8"}
    pair = [ok("a", "fsdp=8", **real), ok("b", "tensor=8", **real)]
    text = Page(report(pair, tmp_path / "page.html").read_text("utf-8")).text
    assert text.index("Throughput by layout") < text.index("Peak memory by layout")
    assert "do not rank." not in text and "highest tokens per second" in text


def test_each_kind_of_device_gets_its_own_results(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    real = ok("r", "fsdp=8", simulated=False, target="h100:8", steps=200)
    text = Page(report([*runs, real], tmp_path / "p.html").read_text("utf-8")).text
    first, second = (text.index(f"on {kind} devices") for kind in ("real", "simulated"))
    assert "h100:8" in text[first:second] and "200 steps" in text[first:second]
    assert "cpu:8" in text[second:]
    assert "do not rank" not in text[first:second]


def test_simulated_speed_is_not_offered_for_sorting(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    text = report(runs, tmp_path / "page.html").read_text("utf-8")
    heads = re.findall(r"<th([^>]*)>(peak|step|tokens/s|loss)<", text)
    offered = {name: "data-sort" in attributes for attributes, name in heads}
    assert offered == {"peak": True, "loss": True, "step": False, "tokens/s": False}


def test_report_escapes_whatever_a_record_holds(tmp_path: Path) -> None:
    run = ok("x", HOSTILE, family=HOSTILE, config={HOSTILE: HOSTILE})
    run.provenance["versions"] = {HOSTILE: HOSTILE}
    assert run.compiled is not None
    run.compiled["collectives"][0]["axes"] = [HOSTILE]
    runs = [run, failed("y", "fsdp=8", "crashed", HOSTILE), failed(HOSTILE, "tensor=8")]
    text = report(runs, tmp_path / "page.html").read_text("utf-8")
    found = Page(text)
    assert found.tags.count("script") == 3  # two of ours, and the data as JSON
    assert "img" not in found.tags
    assert 'alert("1")' in found.text and "\x1b" not in text and "\x00" not in text


def test_holes_everywhere_are_survived(tmp_path: Path) -> None:
    rows = frame(bare())
    assert len(rows) == 4 and not known(rows, "peak_bytes")
    assert "4 runs: 3 ok, 1 crashed" in table(rows)
    assert select(rows, ["batch>1"]).empty
    write_table(rows, tmp_path / "t.parquet")
    assert "nothing to draw" in report(bare(), tmp_path / "p.html").read_text("utf-8")


def test_only_failures_make_a_report_too(tmp_path: Path) -> None:
    runs = [failed(id, f"tensor={id}", reason=f"why {id} " * 200) for id in "123"]
    text = Page(report(runs, tmp_path / "page.html").read_text("utf-8")).text
    assert "0 of 3" in text and "No run ended ok" in text
    assert "the whole reason, 1,200 characters" in text
    assert all(f"why {id}" in text for id in "123")
    assert "3 runs: 3 oom" in table(frame(runs))


def test_many_runs_stay_readable(tmp_path: Path) -> None:
    runs = [ok(str(n), f"fsdp={n}", peak=n, loss=2 + n * 1e-9) for n in range(1, 61)]
    text = report(runs, tmp_path / "page.html").read_text("utf-8")
    assert "Shown: the lowest 40 of 60 runs" in text
    assert text.count('class="peak"') == 40
    assert text.count('<details id="run-') == 60


def test_no_records_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("")
    for call in (frame, report):
        with pytest.raises(ValueError, match=rf"{FILE_NAME} holds no readable run"):
            call(tmp_path)
        with pytest.raises(FileNotFoundError, match="no records at"):
            call(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no records were given"):
        frame([])
    with pytest.raises(ValueError, match="say where the page goes"):
        report([ok("a", "fsdp=8")])


def test_studies_open_without_jax() -> None:
    code = (
        "import sys; import scaling_lab.studies; "
        "heavy = {'jax', 'flax', 'matplotlib', 'pyarrow.parquet'} & set(sys.modules); "
        "rooms = {name.split('.')[1] for name in sys.modules "
        "if name.startswith('scaling_lab.')}; "
        "sys.exit(f'{heavy} {rooms}' if heavy or rooms != {'studies', 'record'} else 0)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
