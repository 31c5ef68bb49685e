"""Published rows: their habits read, their gaps filled in aloud, nothing lost."""

import numpy as np
import pandas as pd
import pytest

from scaling_lab.cost.points import PRECISIONS, STACKS
from scaling_lab.cost.published import read_rows
from scaling_lab.cost.shapes import parameter_count
from scaling_lab.cost.tables import ADDED, predict_table

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
        ({"layers": None}, "layers is blank"),
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
    alone = predict_table(pd.DataFrame([ROW]))
    assert len(many) == 1503
    assert many.predicted_step_seconds.iloc[2] == alone.predicted_step_seconds.iloc[0]


def test_a_table_without_a_size_is_refused():
    with pytest.raises(ValueError, match="no column layers"):
        predict_table(pd.DataFrame([ROW]).drop(columns="layers"))


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
