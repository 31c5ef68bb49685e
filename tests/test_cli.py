"""`scaling-lab` as people call it: what it says, and with which exit code."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest

from scaling_lab import cli, layouts, models, record
from scaling_lab.cli import sweep as cli_sweep
from scaling_lab.cli import train as cli_train
from scaling_lab.config import configure
from scaling_lab.record import RunRecord
from scaling_lab.sweep.run import asked

CONTRACT = (
    "sweep --family llama --size toy --target cpu:8 --layout fsdp=8 "
    "fsdp=4,tensor=2+sequence --batch 8 16 --seed 0 1 --steps 20 --out runs/first"
)


def flat(text):
    """Text without the frame and the line breaks that a terminal's width makes."""
    return " ".join(text.replace("│", " ").split())


# --- Help


def test_help_lists_the_verbs(call):
    code, out, _ = call("--help")
    assert code == 0
    for verb in cli.VERBS:
        assert f"• {verb} " in out
    assert "Every verb has --help" in flat(out)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_teaches(call, verb):
    code, out, _ = call(f"{verb} --help")
    assert code == 0
    about = cli.VERBS[verb].__doc__.splitlines()[0]
    assert about.rstrip(".") in flat(out)
    takes_a_run = verb not in (
        "records",
        "report",
        "serve-report",
        "plan",
        "calibrate",
        "layouts",
        "models",
        "schedule",
        "fit",
        "laws",
        "study",
    )
    assert ("--layout" in out) == takes_a_run
    assert ("fsdp=4,tensor=2+sequence" in flat(out)) == takes_a_run
    assert "(default:" in flat(out)


def test_every_flag_says_what_it_is_for(call):
    _, out, _ = call("sweep --help")
    from scaling_lab.cli.grammar import FLAGS

    for name, _, _, about in FLAGS:
        assert f"--{name.replace('_', '-')}" in out
        assert about.split(";")[0].split(".")[0][:40] in flat(out)


def test_nothing_at_all_says_what_is_missing(call):
    code, _, err = call()
    assert code == 2
    assert "models" in err and "sweep" in err


# --- Verbs that show


def test_models_lists_every_size(call):
    code, out, _ = call("models")
    assert code == 0 and "8,030,261,248" in out
    _, out, _ = call("models --json")
    rows = {(row["family"], row["size"]): row for row in json.loads(out)}
    wanted = {(f, s) for f in models.families() for s in models.family(f).SIZES}
    assert rows.keys() == wanted
    assert rows["llama", "8b"]["params"] == 8_030_261_248
    assert rows["llama", "8b"]["L"] == 32


def test_layouts_lists_every_file_and_the_grammar(call):
    code, out, _ = call("layouts")
    assert code == 0
    for word in (*layouts.names(), "+sequence", "+zero1", "context"):
        assert word in out
    assert "Fully sharded data parallel, ZeRO-3" in out
    assert "D→fsdp" in out
    _, out, _ = call("layouts --target cpu:4 --json")
    found = json.loads(out)
    assert found["hsdp"]["mesh"] == {"data": 2, "fsdp": 2}
    assert found.keys() == set(layouts.names())


def test_explain_in_json(call):
    code, out, err = call(
        "explain --size 70b --target tpu-v5p:8x8x8 --layout fsdp=64,tensor=8 "
        "--batch 512 --length 4096 --json"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["params"] == 70_553_706_496
    assert found["target"] == "tpu-v5p:8x8x8"
    gate = {"what": "parameter", "name": "layers/gate_LDF"}
    (row,) = [row for row in found["rows"] if gate.items() <= row.items()]
    assert row["placement"] == "L, D@fsdp, F@tensor"
    assert row["bytes"] == 4 * 80 * 8192 * 28_672 // 512
    assert {"all-gather", "reduce-scatter"} <= {c["kind"] for c in found["collectives"]}
    assert set(found["bytes_per_device"]) == {
        "parameter",
        "gradient",
        "optimizer",
        "activation",
    }
    assert found["flops_per_token"]["6N"] == 6 * found["params"]


def test_explain_for_people(call):
    code, out, _ = call("explain --target cpu:8 --layout fsdp=4,tensor=2+sequence")
    assert code == 0
    assert "layout fsdp=4,tensor=2+sequence, batch 8 × 256" in out
    assert "L, D@fsdp, F@tensor" in out
    assert "bytes a device" in out and "collectives in a step" in out


def config_of(**words):
    return configure(**{"target": "cpu:8", "layout": "fsdp=8", **words})


@pytest.fixture
def folder(tmp_path):
    """Records of three runs, one of which failed."""
    for seed, status in enumerate(("ok", "ok", "oom")):
        config = config_of(seed=seed)
        measured = {"loss": {"final": 2.0 + seed}} if status == "ok" else None
        compiled = {"peak_bytes": 2**20 * (3 - seed), "collectives": []}
        row = RunRecord(
            id=config.id,
            environment="e",
            status=status,
            reason=None if status == "ok" else "9 GiB wanted",
            asked=asked(config),
            compiled=compiled,
            measured=measured,
        )
        record.append(tmp_path / "runs", row)
    return tmp_path / "runs"


def test_records_as_table_json_and_file(call, folder):
    code, out, _ = call("records runs")
    assert code == 0 and "oom: 9 GiB wanted" in flat(out)
    _, out, _ = call("records runs --where status=ok --sort loss --descending --json")
    assert [row["loss"] for row in json.loads(out)] == [3.0, 2.0]
    code, out, err = call("records runs --out rows.csv")
    assert (code, out) == (0, "") and "3 rows" in err
    rows = list(csv.DictReader(io.StringIO((folder.parent / "rows.csv").read_text())))
    assert [row["status"] for row in rows] == ["ok", "ok", "oom"]
    assert rows[2]["loss"] == ""  # missing is not zero
    _, out, _ = call("records runs --columns seed peak_bytes")
    assert "MiB" in out and "loss" not in out.splitlines()[1]


def test_report_writes_one_page(call, folder):
    code, out, _ = call("report runs")
    assert code == 0
    page = folder / "report.html"
    assert out.strip().endswith("runs/report.html")
    assert "9 GiB wanted" in page.read_text()
    code, out, _ = call("report runs --out page.html")
    assert code == 0 and (folder.parent / "page.html").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("records nowhere", "no records at nowhere/records.jsonl"),
        ("report nowhere", "scaling-lab sweep --family llama"),
        ("records runs --where los<3", "loss"),
        ("records runs --sort los", "loss"),
        ("records runs --columns los", "loss"),
        ("records runs --out rows.xls", ".csv"),
    ],
)
def test_what_cannot_be_shown_is_said(call, folder, command, message):
    code, out, err = call(command)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err


# --- The sweep


def test_the_contract_command_says_how_many_runs_and_how_long(call, tmp_path):
    code, out, _ = call(CONTRACT + " --dry-run")
    assert code == 0
    first, *rest = out.splitlines()
    assert first.startswith("8 runs, about ")
    assert first.split("about ")[1].split()[1] in ("s", "min")
    assert len(rest) == 8
    assert "llama toy  fsdp=4,tensor=2+sequence  batch 16 × 256, seed 1" in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_which_runs_cannot_be(call):
    words = "--layout data=2,stage=4+interleaved=2 fsdp=8+capacity fsdp=8"
    code, out, _ = call(f"sweep --target cpu:8 {words} --steps 2 --dry-run")
    assert code == 1 and out.count("illegal: ") == 2
    assert "L=4 layers do not divide" in out
    assert "+capacity says how tokens reach experts, and llama has none" in out
    code, out, _ = call("sweep --remat save:ffn/gat --steps 2 --dry-run")
    assert code == 1 and "illegal: unknown verb" in out


@pytest.fixture
def finished(monkeypatch):
    """Runs end at once: those of seed 1 as out of memory, the others well."""
    from scaling_lab.sweep import driver

    def run(config, timeout, cache_dir, watch):
        watch("step", config, {"number": 1, "loss": 2.0, "seconds": 0.1})
        failed = config.seed == 1
        return RunRecord(
            id=config.id,
            environment=driver.environment(config.xla_flags),
            status="oom" if failed else "ok",
            reason="9 GiB wanted" if failed else None,
            asked=asked(config),
            compiled={"compile_seconds": 1.5, "cache_hit": True, "collectives": []},
            measured={"loss": {"final": 2.25}},
            provenance={"seconds": 3.0},
        )

    monkeypatch.setattr(driver, "_run", run)
    monkeypatch.setattr(driver, "with_data", lambda config, cache_dir: (config, None))


def test_a_sweep_shows_its_rows_and_names_its_files(call, finished, tmp_path):
    command = "sweep --target cpu:8 --seed 0 2 --out runs/a"
    code, out, _ = call(command)
    assert code == 0
    assert "2 runs, about" in out
    assert "loss 2.2500, compiled in 1.5 s (cached), 3 s in all" in out
    assert "2 ran, 0 kept from before, 0 were stale, 0 failed" in out
    assert (tmp_path / "runs/a/report.html").exists()
    assert len(record.read("runs/a")) == 2
    code, out, _ = call(command)
    assert code == 0 and "0 ran, 2 kept from before" in out
    assert out.count("kept     llama toy") == 2


def test_a_failed_row_makes_the_exit_code_one(call, finished):
    code, out, _ = call("sweep --target cpu:8 --seed 0 1 --out runs/a")
    assert code == 1
    assert "oom" in out and "9 GiB wanted" in out and "1 failed" in out


def test_a_sweep_in_json_keeps_output_to_records(call, finished):
    code, out, err = call("sweep --target cpu:8 --seed 0 1 --out runs/a --json")
    rows = [RunRecord.from_json(line) for line in out.splitlines()]
    assert code == 1 and [row.status for row in rows] == ["ok", "oom"]
    assert "2 runs, about" in err


def test_an_interrupt_exits_130(call, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_sweep, "run_configs", interrupted)
    code, _, err = call("sweep --target cpu:8")
    assert code == 130 and "what was finished is on disk" in err


def test_an_experiment_takes_two_options_and_tells_them(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, code in ((["--dry-run"], 0), (["--dry"], 2), (["--help"], 0)):
        monkeypatch.setattr(sys, "argv", ["experiment", *words])
        with pytest.raises(SystemExit) as ended:
            cli_sweep.main_of([config_of()], "runs/x")
        assert ended.value.code == code
    out = capsys.readouterr().out
    assert "1 runs, about" in out and "unknown option --dry; there are" in out
    assert not (tmp_path / "runs").exists()


# --- What is asked wrongly

WRONG = [
    ("explain --family lama", "unknown family 'lama'; did you mean llama"),
    ("explain --size 8bb", "unknown size of llama '8bb'; did you mean 8b"),
    ("predict --remat save:ffn/gat", "did you mean ffn/gate"),
    ("explain --layout fdsp", "unknown layout 'fdsp'; did you mean fsdp"),
    ("explain --layout fsdp=4,tensr=2", "did you mean tensor"),
    ("explain --layout fsdp=4,tensor=2+sequense", "did you mean sequence"),
    ("explain --layout fsdp=x", "axis fsdp needs a size"),
    ("explain --target h10:1x8", "did you mean h100"),
    ("explain --target tpu-v5p:4x4", "torus of tpu-v5p has 3 dims"),
    ("explain --target cpu:8 --layout fsdp=8 --batch 12", "nearest batch"),
    ("explain --target cpu:16 --layout tensor=16", "dim N=8 (query heads)"),
    ("explain --target cpu:8 --layout fsdp=16", "or simulate 16 on the CPU with"),
    ("explain --target cpu:8 --layout fsdp=4", "use a layout of 8 devices"),
    ("explain --target cpu:8 --optimizer adamm", "did you mean adamw"),
    ("explain --target cpu:8 --precision bf16", "did you mean bfloat16"),
    ("sweep --target cpu:8 --layout fsdp fsdpp --dry-run", "did you mean fsdp"),
    ("sweep --target cpu:8 --data nowhere.txt", "no file or folder nowhere.txt"),
    ("train --target cpu:8 --data nowhere.txt", "no file or folder nowhere.txt"),
    ("train --target cpu:8 --layout fsdp=16 --data a.txt", "--target cpu:16"),
    ("train --target cpu:8 --batch 12 --layout fsdp=8 --data a.txt", "dim B=12"),
    ("train --target cpu:8 --data empty.txt", "empty.txt is empty (0 bytes"),
    ("train --target cpu:8 --data binary.txt", "binary.txt"),
    ("train --target cpu:8 --data photo.png", "accepted are .txt"),
    ("train --target cpu:8 --data short.txt", "too few for a window"),
    ("train --target cpu:8 --length 32 --data little.txt", "--evaluate-batches 0"),
    ("train --target cpu:8 --tokenizer bpe:3 --data a.txt", "at least 257"),
    ("train --target tpu-v5p:2x2x1 --layout fsdp=4", "is not this machine"),
]


@pytest.mark.parametrize(("command", "message"), WRONG)
def test_bad_input_ends_with_one_message_and_code_two(call, tmp_path, command, message):
    (tmp_path / "a.txt").write_text("hello there, " * 4000)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "little.txt").write_text("too little to hold any out. " * 300)
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    code, _, err = call(command)
    assert code == 2
    assert message in err
    assert err.count("error: ") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("trian", "train"),
        ("explain --layuot fsdp", "--layout"),
        ("sweep --learning-rat 1e-3", "--learning-rate"),
    ],
)
def test_an_unknown_verb_or_flag_names_the_nearest(call, command, nearest):
    code, _, err = call(command)
    assert code == 2
    assert nearest in err


@pytest.mark.parametrize("value", ["eight", "1.5"])
def test_a_value_of_the_wrong_kind_is_said(call, value):
    code, _, err = call(f"explain --batch {value}")
    assert code == 2
    assert "--batch" in err and value in err


def test_more_devices_than_this_machine_has_tells_how_to_simulate(call, tmp_path):
    (tmp_path / "a.txt").write_text("hello there, " * 4000)
    code, _, err = call("train --layout fsdp=64 --batch 64 --length 32 --data a.txt")
    assert code == 2
    assert "asks for 64 devices and there are 8" in err
    assert "--target cpu:64" in err


def test_a_traceback_for_who_asks(monkeypatch):
    monkeypatch.setenv("SCALING_LAB_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["scaling-lab", "explain", "--family", "lama"])
    with pytest.raises(ValueError, match="lama"):
        cli.main()


# --- Training


def test_train_prints_its_sample_and_its_files(call, tmp_path, quick_compiles):
    (tmp_path / "a.txt").write_text("".join(f"{n} and {n + 1}\n" for n in range(9000)))
    words = "train --layout data=1 --layers 1 --length 32 --steps 3 "
    words += "--evaluate-batches 1 --data a.txt --out runs/t"
    code, out, err = call(words + " --sample 5 --prompt 12")
    assert (code, err) == (0, "")
    assert "step 3: loss" in out and "bits per byte" in out
    assert "sample\n12" in out and "records:     runs/t/records.jsonl" in out
    code, _, err = call(words)
    assert code == 2 and "holds a checkpoint of step 3; say --resume" in err
    code, out, _ = call(words + " --resume --sample 0 --steps 4 --json")
    assert code == 0
    row = RunRecord.from_json(out)
    assert row.measured["loss"]["steps"] == [4]


def test_a_target_sets_the_devices(monkeypatch):
    asked_of_jax = {}
    monkeypatch.setattr("jax.config.update", asked_of_jax.__setitem__)
    monkeypatch.delenv("NPROC")
    assert cli_train.start_jax("local") == 8 and asked_of_jax == {}
    cli_train.start_jax("cpu:3")
    assert asked_of_jax == {"jax_platforms": "cpu", "jax_num_cpu_devices": 3}
    assert int(os.environ["NPROC"]) > 3


@pytest.mark.slow
def test_the_console_script_is_installed(tmp_path):
    said = subprocess.run(
        [f"{sys.prefix}/bin/scaling-lab", *CONTRACT.split(), "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("8 runs, about ")
