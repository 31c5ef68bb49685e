"""Published rows: their habits read, their gaps filled in aloud, nothing lost."""

import numpy as np
import pandas as pd
import pytest

from scaling_lab.cost.points import PRECISIONS, STACKS
from scaling_lab.cost.predict import predict
from scaling_lab.cost.published import read_rows
from scaling_lab.cost.shapes import parameter_count
from scaling_lab.cost.tables import ADDED, predict_table, read_table

ROW = {
    "run": "r1",
    "source": "somebody/somewhere@1 docs",
    "framework": "torchtitan",
    "model": "Llama-3-8B",
    "params": 8.03e9,
    "layers": 32,
    "d_model": 4096,
    "n_heads": 32,
    "kv_heads": 8,
    "d_ff": 14336,
    "mlp": "swiglu",
    "vocab": 128256,
    "seq_len": 8192,
    "global_batch_tokens": 64 * 8192,
    "microbatch_seqs": 1,
    "hardware": "h100",
    "chips": 64,
    "data": 64,
    "fsdp": 64,
    "zero_stage": 3,
    "tensor": 1,
    "stage": 1,
    "precision": "bf16",
    "remat": "none",
}


def read(**changes):
    """One row, changed, as its point and what was assumed."""
    rows = read_rows(pd.DataFrame([ROW | changes]))
    assert rows.reasons == [None], rows.reasons
    return rows.points, rows.assumptions[0]


def refused(**changes):
    """Why a row cannot be read."""
    rows = read_rows(pd.DataFrame([ROW | changes]))
    assert rows.points is None and rows.index.size == 0
    return rows.reasons[0]


def test_a_microbatch_that_does_not_divide_is_said():
    points, said = read(global_batch_tokens=64 * 8 * 8192, microbatch_seqs=3)
    assert points.microbatch_seqs[0] == 3
    assert "microbatch_seqs=3 does not divide a replica's 8: priced as 2.67" in said
    assert "does not divide" not in read(microbatch_seqs=1)[1]


def test_rows_that_nobody_sent_are_priced_for_us_alone():
    """MaxText's exchange of experts makes no room for rows that do not come."""
    mixtral = {"framework": "MaxText", "model": "mixtral-8x7b", "params": None}
    mixtral |= {"hardware": "tpu-v6e", "n_experts": 8, "top_k": 2, "vocab": 32000}
    inside, _ = read(**mixtral, expert=8)
    whole, _ = read(**mixtral)
    assert inside.expert[0] == 8
    assert predict(inside).memory_seconds == predict(whole).memory_seconds
    ours = predict(inside.replace(lockstep=1.0)).memory_seconds
    assert ours > 1.5 * predict(whole).memory_seconds


# --- Habits


def axes(points):
    return [
        int(getattr(points, axis)[0])
        for axis in ("data", "fsdp", "tensor", "stage", "context")
    ]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [1, 64, 1, 1, 1]),
        ({"data": 64, "fsdp": 8}, [8, 8, 1, 1, 1]),
        ({"data": 1, "fsdp": 64}, [1, 64, 1, 1, 1]),
        ({"data": 2, "fsdp": 32}, [2, 32, 1, 1, 1]),
        ({"data": None, "fsdp": 64}, [1, 64, 1, 1, 1]),
        ({"fsdp": 0, "zero_stage": 1}, [64, 1, 1, 1, 1]),
        ({"fsdp": None, "zero_stage": 1}, [64, 1, 1, 1, 1]),
        ({"data": 4, "fsdp": 0, "zero_stage": 1, "tensor": 4, "stage": 4}, None),
        ({"data": 16, "fsdp": 16, "context": 4}, [1, 16, 1, 1, 4]),
        ({"data": 64, "fsdp": 16, "context": 4}, [1, 16, 1, 1, 4]),
    ],
)
def test_axes_multiply_to_the_devices(changes, wanted):
    points, _ = read(**changes)
    wanted = wanted or [4, 1, 4, 4, 1]
    assert axes(points) == wanted
    assert np.prod(axes(points)) == points.devices[0] == 64


def test_a_subgroup_is_said():
    _, said = read(data=64, fsdp=8)
    assert "fsdp=8 read as a subgroup of data=64" in said


def test_two_devices_a_chip():
    points, _ = read(hardware="tpu-7x", chips=32, data=1, fsdp=64, framework="jax")
    assert points.devices[0] == 64 and points.chips[0] == 32
    assert points.flops_per_second[0] == pytest.approx(2.307e15 / 2)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bf16", "bfloat16"),
        ("amp_bf16", "bfloat16"),
        ("TE bf16", "bfloat16"),
        ("bf16 (fp32 params)", "bfloat16"),
        ("fp16", "float16"),
        ("FP8-CS (FP8-MX)", "float8"),
        ("FP8 (recipe default)", "float8"),
        ("fp8 tensorwise(+bf16)", "float8"),
        ("fp8_full", "float8"),
        ("MXFP8", "mxfp8"),
        ("FP8-MX", "mxfp8"),
        ("NVFP4", "nvfp4"),
        ("int8 (AQT; folder named fp8, config quantization=int8)", "int8"),
    ],
)
def test_precision_words(text, wanted):
    points, _ = read(precision=text, hardware="gb200")
    assert PRECISIONS[int(points.precision[0])] == wanted


@pytest.mark.parametrize(
    ("framework", "technique", "wanted"),
    [
        ("jax", "", "xla"),
        ("Megatron-Core (Megatron-Bridge)", "", "megatron"),
        ("MegaScale", "PTB+SWA", "megatron"),
        ("torchtitan", "torch.compile, async TP", "torch_compile"),
        ("torchtitan", "eager, no compile", "torch_eager"),
        ("llm-foundry (Composer+FSDP1)", "FSDP FULL_SHARD", "torch_eager"),
        ("something new", "", "unknown"),
    ],
)
def test_software_by_what_it_is_called(framework, technique, wanted):
    points, _ = read(framework=framework, technique=technique)
    assert STACKS[int(points.stack[0])] == wanted


@pytest.mark.parametrize(
    ("technique", "wanted"),
    [
        ("ZeRO-3 baseline", (2.0, 2.0, 0.0, 8)),
        ("ZeRO++", (1.0, 0.5, 1.0, 8)),
        ("ZeRO++ (qwZ+hpZ+qgZ, hpz=16)", (1.0, 0.5, 1.0, 16)),
        ("ZeRO++ (qgZ alone)", (2.0, 0.5, 0.0, 8)),
    ],
)
def test_what_deepspeed_moves(technique, wanted):
    """Bytes of a weight and of a gradient, a second gather nearby, a node's GPUs."""
    points, _ = read(framework="DeepSpeed", technique=technique)
    columns = ("gathered_bytes", "reduced_bytes", "near_again", "scale_up")
    assert tuple(getattr(points, name)[0] for name in columns) == wanted
    assert np.isnan(read(technique=technique)[0].reduced_bytes[0]) == (wanted[1] == 2)


def test_full_remat_skips_the_last_product_under_xla_alone():
    eager, _ = read(remat="full")
    ours, _ = read(remat="full", framework="jax")
    assert eager.recompute[0] == 1
    blocks = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert ours.recompute[0] == pytest.approx(1 - 4096 * 14336 / blocks)


def test_names_in_a_policy_are_kept():
    kept, said = read(remat="custom: context,q,k,v on device", framework="jax")
    full, _ = read(remat="full", framework="jax")
    assert kept.recompute[0] < full.recompute[0]
    assert kept.scores_again[0] == 0 and full.scores_again[0] == 1
    assert "done again" in said


def test_a_name_fills_in_what_a_row_leaves_out():
    points, said = read(
        model="deepseek3-671b",
        params=671e9,
        layers=61,
        d_model=7168,
        n_heads=128,
        kv_heads=128,
        d_ff=18432,
        vocab=129280,
    )
    assert points.n_experts[0] == 256 and points.top_k[0] == 8
    assert points.expert_d_ff[0] == 2048 and points.dense_layers[0] == 3
    assert parameter_count(points)[0] == pytest.approx(671e9, rel=0.01)
    assert "n_experts blank: 256" in said


@pytest.mark.parametrize(
    ("model", "changes", "params"),
    [
        ("Llama-3-8B", {}, 8.03e9),
        (
            "Llama-3.1-405B",
            {"layers": 126, "d_model": 16384, "n_heads": 128, "d_ff": 53248},
            405.85e9,
        ),
        (
            "mixtral-8x7b",
            {"vocab": 32000, "mlp": None, "params": None},
            46.7e9,
        ),
    ],
)
def test_dims_count_the_parameters(model, changes, params):
    points, _ = read(**({"params": params} | changes), model=model)
    assert parameter_count(points)[0] == pytest.approx(params, rel=0.01)


# --- What cannot be read


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": None, "model": "new", "params": None}, "layers is blank"),
        ({"layers": 2.5}, "layers=2.5 is no whole number"),
        ({"d_ff": 1e300}, "must be a number of 0 or more, up to 1e+18"),
        ({"chips": 0}, "chips is 0"),
        ({"hardware": None}, "hardware is blank"),
        ({"kv_heads": 64}, "kv_heads=64 is more than n_heads=32"),
        ({"n_experts": 4, "top_k": 8}, "top_k=8 is more than n_experts=4"),
        ({"active_params": 9e9}, "active_params=9000000000 is more than params"),
        ({"global_batch_tokens": 4096}, "seq_len=8192 is more than"),
        ({"stage": 64, "data": 1, "fsdp": 1}, "are more than layers=32"),
        ({"zero_stage": 9}, "zero_stage='9' is none of 0, 1, 2 and 3"),
        ({"n_experts": 64, "params": 1e9}, "the dims without any expert count"),
        ({"d_model": "wide"}, "d_model='wide' is not a number"),
        ({"chips": -8}, "must be a number of 0 or more"),
        ({"hardware": "abacus"}, "unknown chip 'abacus'"),
        ({"tensor": 3}, "do not divide 64 devices"),
        ({"data": 7, "fsdp": 5}, "leave 64 replicas unexplained"),
    ],
)
def test_a_contradiction_is_named_with_its_row(changes, words):
    reason = refused(**changes)
    assert words in reason and "row 1 (r1)" in reason


def test_a_row_that_cannot_be_read_keeps_its_place():
    table = pd.DataFrame([ROW, ROW | {"run": "r2", "chips": None}, ROW | {"run": "r3"}])
    done = predict_table(table)
    assert list(done.columns) == [*ROW, *ADDED]
    assert list(done.run) == ["r1", "r2", "r3"]
    assert list(done.prediction_status) == ["ok", "unread", "ok"]
    assert "row 2 (r2): chips is blank" in done.prediction_reason[1]
    assert np.isnan(done.predicted_step_seconds[1])
    assert done.predicted_step_seconds[0] == done.predicted_step_seconds[2] > 0


def test_rows_do_not_see_each_other():
    many = predict_table(pd.DataFrame([ROW] * 3 + [ROW | {"chips": None}] * 1500))
    assert many.prediction_reason.iloc[1502].startswith("row 1503 (r1)")
    alone = predict_table(pd.DataFrame([ROW]))
    assert len(many) == 1503
    assert many.predicted_step_seconds.iloc[2] == alone.predicted_step_seconds.iloc[0]


def test_a_table_without_a_size_is_refused():
    with pytest.raises(ValueError, match="no column seq_len"):
        predict_table(pd.DataFrame([ROW]).drop(columns="seq_len"))


# --- Blanks and spellings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100", "h100"),
        ("TPU v5p", "tpu-v5p"),
        ("A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("v5litepod", "tpu-v5e"),
    ],
)
def test_chips_as_people_write_them(text, name):
    points, _ = read(hardware=text)
    assert points.chip[0] == name


@pytest.mark.parametrize("text", ["E4M3", "f8e4m3", "float8_e4m3fn"])
def test_eight_bits_by_their_format(text):
    points, _ = read(precision=text)
    assert PRECISIONS[int(points.precision[0])] == "float8"


@pytest.mark.parametrize("text", ["3", 3.0, "ZeRO-3", "zero3"])
def test_zero_as_people_write_it(text):
    points, _ = read(zero_stage=text)
    assert points.zero_stage[0] == 3


def test_blank_sizes_by_the_name():
    blank = dict.fromkeys(("params", "layers", "d_model", "n_heads", "d_ff"))
    points, said = read(**blank)
    full, _ = read()
    for name in ("layers", "d_model", "n_heads", "d_ff"):
        assert getattr(points, name)[0] == getattr(full, name)[0]
    assert "by the model's name: layers=32, d_model=4096" in said


@pytest.mark.parametrize("params", [1.3e9, 13e9, 175e9])
def test_blank_sizes_by_the_count(params):
    blank = dict.fromkeys(("layers", "d_model", "n_heads", "d_ff", "kv_heads", "mlp"))
    points, said = read(model="ours", params=params, **blank)
    assert "blank and usual for" in said
    blocks = parameter_count(points)[0] - 2 * points.vocab[0] * points.d_model[0]
    assert 0.7 < blocks / params < 1.3


def test_experts_as_wide_as_the_count_allows():
    points, said = read(model="ours", params=5e10, n_experts=64, top_k=2)
    assert parameter_count(points)[0] == pytest.approx(5e10, rel=0.01)
    assert "they would count" in said


def test_what_is_not_as_written_is_said():
    _, said = read(microbatch_seqs=50, schedule="odd")
    assert "microbatch_seqs=50: a replica has only 1" in said
    assert "schedule 'odd' read as 1f1b" in said


# --- Files


def written(path, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return path


def test_a_table_is_read_as_it_is_written(tmp_path):
    names, cells = list(ROW), ["" if v is None else str(v) for v in ROW.values()]
    cells[0], cells[4] = "007", "8030000000"
    long = [*cells, "one", "two"]
    table = read_table(written(tmp_path / "runs.csv", [names, cells, long, cells[:9]]))
    assert list(table.run) == ["007"] * 3
    done = predict_table(table)
    assert list(done.prediction_status) == ["ok", "unread", "unread"]
    assert "more cells than the heading: 'one,two'" in done.prediction_reason[1]
    assert list(done.params[:1]) == ["8030000000"]  # and no 8030000000.0


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty: it needs a heading"),
        (b"run,model\n\xe9,b\n", "not UTF-8 text .byte 10 is 0xe9.; save it as CSV"),
        (b'run\n"' + b"a" * 200_000 + b"\n", "is no table of comma-separated"),
    ],
)
def test_what_is_no_table(tmp_path, raw, said):
    path = tmp_path / "runs.csv"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=said):
        read_table(path)


def test_a_mark_of_utf_8_is_no_heading(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes("\ufeffrun,run\na,b\n".encode())
    assert list(read_table(path).columns) == ["run", "run.1"]


def test_a_second_prediction_replaces_the_first():
    once = predict_table(pd.DataFrame([ROW]))
    assert list(predict_table(once).columns) == list(once.columns)


def test_throughput_is_tokens_over_time_and_chips():
    done = predict_table(pd.DataFrame([ROW])).iloc[0]
    rate = done.global_batch_tokens / done.predicted_step_seconds / done.chips
    assert done.predicted_tokens_per_second_per_chip == pytest.approx(rate)
    low, high = done.predicted_step_seconds_low, done.predicted_step_seconds_high
    assert low < done.predicted_step_seconds < high


def test_every_published_row_is_read(shared):
    path = shared / "data" / "published_runs" / "published_runs.csv"
    rows = read_rows(pd.read_csv(path))
    assert not [reason for reason in rows.reasons if reason]
    product = np.prod(
        [
            getattr(rows.points, a)
            for a in ("data", "fsdp", "tensor", "stage", "context")
        ],
        axis=0,
    )
    np.testing.assert_array_equal(product, rows.points.devices)
    counted = parameter_count(rows.points) / rows.points.params
    assert np.mean(np.abs(counted - 1) < 0.05) > 0.95
