"""``scaling-lab plan`` and ``records import`` as people call them."""

import json

import pytest

from scaling_lab import record

CONTRACT = (
    "plan --family llama --size 70b --target tpu-v5p:8x8x8 --batch-tokens 4M "
    "--length 8192"
)
KEYS = (
    "layout microbatches remat schedule step_seconds step_seconds_low "
    "step_seconds_high tied confirmed tokens_per_second_per_chip peak_bytes "
    "mfu_causal reason"
).split()
SMALL = ("plan", "--size", "1b", "--target", "h100:1x8", "--batch-tokens", "256K")
SMALL = (*SMALL, "--length", "2048")


def test_the_contract(call):
    code, out, _ = call(CONTRACT)
    assert code == 0
    assert "70,553,706,496 parameters" in out
    assert "512 sequences of 8,192" in out
    assert "tied: its interval overlaps the first's" in out
    assert "does not fit" in out
    assert "illegal: stage does not divide L=80" in out


def test_a_file_that_is_not_there(call):
    code, _, said = call("plan --model nosuch.json --target h100:8x8")
    assert code == 2
    assert "nosuch.json: no such file" in said


def test_json_is_a_ranked_list(call, tmp_path):
    code, out, _ = call(*SMALL, "--json", "--top", "5")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) == 5
    for row in rows:
        assert set(KEYS) <= set(row)
        assert row["confirmed"] is None
        assert row["reason"]
    seconds = [row["step_seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert json.loads(call(*SMALL, "--top", "5", "--json", "-")[1]) == rows


def test_the_best_policy_of_a_layout_is_shown(call):
    asked = "plan --size 8b --target h100:8x8 --batch-tokens 512K --length 4096"
    asked += " --axes fsdp"
    code, out, _ = call(asked)
    assert code == 0 and "fsdp=64+gather_once" in out
    (row,) = json.loads(call(f"{asked} --json -")[1])
    assert row["refined"] is True and row["layout"] == "fsdp=64+gather_once"
    assert "+gather_once" not in call(f"{asked} --emit megatron")[1].splitlines()[-1]


def test_json_in_a_file_leaves_the_table(call, tmp_path):
    five = (*SMALL, "--top", "5")
    path = tmp_path / "kept" / "plan.json"
    plain = call(*five)[1]
    code, out, err = call(*five, "--json", "kept/plan.json")
    assert (code, out) == (0, plain) and "written: kept/plan.json" in err
    assert json.loads(path.read_text()) == json.loads(call(*five, "--json")[1])
    flags = (*SMALL, "--emit", "megatron")
    assert call(*flags, "--json", "kept/plan.json")[1] == call(*flags)[1]
    assert json.loads(path.read_text())["tool"] == "megatron"
    hours = (*SMALL, "--chip-hours", "1000")
    assert call(*hours, "--json", "kept/plan.json")[1] == call(*hours)[1]
    assert {"target", "hours"} <= set(json.loads(path.read_text())[0])


def test_a_model_file_prints_its_parameters(call, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "mixtral",
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
                "vocab_size": 32000,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
            }
        )
    )
    code, out, _ = call("plan --model config.json --target h100:8x8")
    assert code == 0
    assert "46,702,792,704 parameters, 12,879,925,248 active" in out
    assert "expert=" in out


def test_axes_and_the_star(call):
    code, out, _ = call(*SMALL)
    assert code == 0
    assert "predicted only" not in out
    experts = "plan --family mixtral --size 8x7b --target h100:8x8 --batch-tokens 256K"
    code, out, _ = call(f"{experts} --length 4096 --axes data,expert,tensor")
    assert code == 0
    assert "predicted only" in out and "experts outside fsdp" in out
    code, _, err = call(*SMALL, "--axes", "data,fdsp")
    assert code == 2
    assert "did you mean fsdp" in err


def test_what_no_compiler_speaks_for_is_predicted(call, tmp_path):
    words = "plan --size 1b --target mi300x:1x8 --batch-tokens 1M --length 4096 --json"
    code, out, err = call(f"{words} --compile 1")
    assert code == 0 and "predicted only: there is no compiler for mi300x" in err
    rows = json.loads(out)
    assert rows[0]["confirmed"] is None
    assert json.loads(call(words)[1]) == rows  # every axis, as without --compile


def test_precisions_as_people_type_them(call):
    short = call(*SMALL, "--precision", "fp8", "--json")[1]
    assert short and short == call(*SMALL, "--precision", "float8", "--json")[1]


def test_what_fits_nowhere(call):
    code, out, err = call("plan --size 405b --target tpu-v5e:2x2 --batch-tokens 1M")
    assert code == 2
    assert not out
    assert "does not fit on tpu-v5e:2x2" in err
    assert "more than the" in err


def test_the_smallest_machine(call):
    code, out, _ = call("plan --size 70b --target h100:64x8 --smallest --top 3")
    assert code == 0
    assert "h100:64x8" not in out
    assert "h100:" in out


def test_the_largest_batch(call):
    code, out, err = call(*SMALL, "--largest-batch", "--top", "3")
    assert code == 0
    assert "largest batch without accumulation" in err


def test_a_budget(call):
    code, out, _ = call(*SMALL, "--chip-hours", "1000")
    assert code == 0
    assert "chip-hours" in out
    code, out, _ = call(*SMALL, "--chip-hours", "1000", "--json")
    rows = json.loads(out)
    assert [row["target"] for row in rows]
    assert {"tokens", "hours", "chip_hours", "layout"} <= set(rows[0])
    code, _, err = call(*SMALL, "--chip-hours", "1", "--train-tokens", "9T")
    assert code == 2
    assert "too few chip-hours" in err and "takes" in err


@pytest.mark.parametrize("tool", ["maxtext", "megatron", "torchtitan"])
def test_flags_of_others(call, tool):
    code, out, _ = call(*SMALL, "--emit", tool)
    assert code == 0
    assert out.startswith(f"# {tool}, flags as in ")
    code, out, _ = call(*SMALL, "--emit", tool, "--json")
    assert {"values", "unmapped", "lines"} <= set(json.loads(out))


def test_bad_words(call):
    for words, said in (
        (("--emit", "maxtxt"), "did you mean maxtext"),
        (("--emit", "maxtext", "--choose", "99"), "--choose 99"),
        (("--target", "tpu-v5p:3x3x3"), "no such slice"),
        (("--target", "local"), "name a machine"),
        (("--precision", "float9"), "did you mean float8"),
        (("--top", "0"), "--top 0: at least 1"),
        (("--compile", "-1"), "--compile -1: at least 0"),
        (("--optimizer", "adam"), "did you mean adamw"),
        (("--batch-tokens", "lots"), "as 4M"),
        (("--calibration", "none.json"), "none.json"),
        (("--model", "none.json"), "none.json"),
    ):
        code, _, err = call(*SMALL, *words)
        assert code == 2, words
        assert said in err, (words, err)


# --- records import


RUNS = "run,hardware,chips,step_seconds,odd\na,h100,8,1.5,x\nb,h100,8,2.5,y\n"


def test_a_table_becomes_records_once(call, tmp_path):
    (tmp_path / "theirs.csv").write_text(RUNS)
    code, _, err = call("records import theirs.csv --out runs/theirs")
    assert code == 0
    assert "2 runs imported" in err
    assert "kept as they are (asked.imported): odd" in err
    code, _, err = call("records import theirs.csv --out runs/theirs")
    assert "0 runs imported" in err
    assert "2 were there already" in err
    assert len(record.read(tmp_path / "runs" / "theirs")) == 2
    code, out, _ = call("records runs/theirs")
    assert code == 0
    assert "h100:1x8" in out
    code, _, err = call("records import theirs.csv")
    assert "runs/theirs" in err


def test_rows_that_say_enough_are_imported_with_a_prediction(call, tmp_path):
    rows = (
        "run,model,seq_len,global_batch_tokens,hardware,chips,fsdp,step_seconds\n"
        "a,llama3.1-8b,8192,1048576,h100,64,64,2.0\n"
        "b,nobody-knows-it,8192,1048576,h100,64,64,2.0\n"
    )
    (tmp_path / "theirs.csv").write_text(rows)
    code, _, err = call("records import theirs.csv --out runs/theirs")
    assert code == 0 and "2 runs imported, 1 with a prediction" in err
    first, second = record.read(tmp_path / "runs" / "theirs")
    assert second.predicted is None and first.predicted is not None
    low, high = (first.predicted[f"step_seconds_{end}"] for end in ("low", "high"))
    assert 0.5 < low < first.predicted["step_seconds"] < high < 8


def test_import_without_a_table_and_two_folders(call, tmp_path):
    code, _, err = call("records import")
    assert code == 2
    assert "needs a table" in err
    (tmp_path / "a.csv").write_text(RUNS)
    code, _, err = call("records runs/a a.csv")
    assert code == 2
    assert "records import FILE.csv" in err
