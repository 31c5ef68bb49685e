"""Chips and targets: a contract for every file, and how texts are read."""

import csv
import dataclasses
import importlib
from pathlib import Path

import pytest

from scaling_lab.hardware import Chip, Target, chip, chip_for, chips, parse_target

TABLE = Path(__file__).parents[2] / "shared" / "data" / "hardware.csv"
TABLE_NAMES = {
    "tpu-v4": "TPU v4",
    "tpu-v5e": "TPU v5e",
    "tpu-v5p": "TPU v5p",
    "tpu-v6e": "TPU v6e (Trillium)",
    "tpu-7x": "TPU7x (Ironwood)",
    "a100": "A100-80GB SXM",
    "h100": "H100 SXM",
    "h200": "H200 SXM",
    "b200": "B200",
    "gb200": "GB200 NVL72 (per GPU)",
    "mi300x": "MI300X",
}
PRECISIONS = {
    "bfloat16": "peak_bf16_tflops",
    "float8": "peak_fp8_tflops",
    "int8": "peak_int8_tops",
    "float4": "peak_fp4_tflops",
}


@pytest.mark.parametrize("name", chips())
def test_every_chip_is_named_sourced_and_positive(name):
    found = chip(name)
    module = importlib.import_module(f"scaling_lab.hardware.{name.replace('-', '_')}")
    assert isinstance(found, Chip) and found is module.CHIP and found.name == name
    assert found.source and found.vendor and found.device_kinds
    assert "Source:" in (module.__doc__ or "")
    assert set(found.flops_per_second) <= set(PRECISIONS)
    numbers = [
        value
        for field in dataclasses.fields(found)
        if isinstance(value := getattr(found, field.name), int | float)
        and field.name != "torus_dims"
    ]
    assert all(number > 0 for number in [*numbers, *found.flops_per_second.values()])
    assert found.torus_dims in (0, 2, 3)
    assert hash(found) and parse_target(found.example).chip is found


@pytest.mark.parametrize("name", chips())
def test_every_chip_but_the_host_states_what_a_prediction_needs(name):
    found = chip(name)
    if name == "cpu":
        assert not found.flops_per_second and found.hbm_bytes is None
        return
    assert found.flops_per_second["bfloat16"] > 1e14
    assert found.hbm_bytes and found.hbm_bytes > 1e10
    assert found.hbm_bytes_per_second and found.link_bytes_per_second
    assert found.network_bytes_per_second and found.scale_up_chips
    assert found.link_bytes_per_second > found.network_bytes_per_second


def test_chips_agree_with_the_table():
    if not TABLE.exists():
        pytest.skip(f"no table at {TABLE}: the chips' numbers are not compared")
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = {row["chip"]: row for row in csv.DictReader(lines)}
    assert set(TABLE_NAMES) == set(chips()) - {"cpu"}
    assert set(TABLE_NAMES.values()) == set(rows)
    for name, title in TABLE_NAMES.items():
        found, row = chip(name), rows[title]
        peaks = {key: row[column] for key, column in PRECISIONS.items() if row[column]}
        assert dict(found.flops_per_second) == pytest.approx(
            {key: float(value) * 1e12 for key, value in peaks.items()}
        ), name
        assert found.hbm_bytes == float(row["hbm_gb"]) * 1e9, name
        rates = {
            "hbm_gbps": found.hbm_bytes_per_second,
            "scaleup_oneway_GBps_per_chip": found.link_bytes_per_second,
            "scaleout_GBps_per_chip": found.network_bytes_per_second,
        }
        for column, value in rates.items():
            assert value == pytest.approx(float(row[column]) * 1e9), (name, column)
        assert found.scale_up_chips == int(row["max_scaleup_domain_chips"]), name
        if row["cores_per_chip"]:
            assert found.cores_per_chip == int(row["cores_per_chip"]), name
        torus = {"2D": 2, "3D": 3}
        words = row["scaleup_interconnect"].split()
        assert found.torus_dims == next((torus[w] for w in words if w in torus), 0)


@pytest.mark.parametrize(
    ("text", "total_chips", "devices"),
    [
        ("tpu-v5p:4x4x4", 64, 64),
        ("tpu-7x:2x2x1", 4, 8),
        ("tpu-v4:2x2x1", 4, 8),
        ("tpu-v6e:16x16*2", 512, 512),
        ("h100:8x8", 64, 64),
        ("gb200:2x72", 144, 144),
        ("cpu:8", 8, 8),
    ],
)
def test_targets_round_trip(text, total_chips, devices):
    target = parse_target(text)
    assert target.text == text and parse_target(target.text) == target
    assert (target.chips, target.devices) == (total_chips, devices)
    assert target.simulated == text.startswith("cpu")


def test_a_target_has_one_canonical_text():
    target = Target.parse(" TPU-v6e:16x16*1 ")
    assert target == Target(chip("tpu-v6e"), (16, 16))
    assert target.text == "tpu-v6e:16x16"
    assert hash(target) == hash(parse_target("tpu-v6e:16x16"))


def test_local_is_resolved_elsewhere():
    target = Target.parse("local")
    assert target.chip is None and target.text == "local"
    assert target.chips is None and target.devices is None and not target.simulated
    with pytest.raises(ValueError, match="takes no topology"):
        Target(None, (8,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu-v5:4x4x4", "did you mean .*tpu-v5p"),
        ("abacus:8", "unknown chip 'abacus'; the chips are a100, b200, cpu"),
        ("tpu-v5p", "'' is not a topology.*'tpu-v5p:4x4x4'"),
        ("tpu-v6e:16*", "not a topology.*'tpu-v6e:4x4'"),
        ("h100:8,8", "not a topology.*'h100:2x8'"),
        ("cpu:eight", "not a topology.*'cpu:8'"),
        ("tpu-v5p:4x4", "has 2 dim.*the torus of tpu-v5p has 3 dims"),
        ("h100:64", "takes two sizes, nodes x chips in a node"),
        ("cpu:2x4", "takes one size, the number of devices"),
        ("tpu-v5p:4x0x4", "every size is at least 1"),
        ("cpu:-8", "every size is at least 1"),
        ("tpu-v6e:16x16*0", "every size is at least 1"),
        ("h100:8x16", "at most 8 h100 chips.*nodes"),
        ("tpu-v5e:32x32", "joins 1024 chips, but at most 256.*slices"),
        ("h100:8x8*2", "only TPUs come in slices"),
    ],
)
def test_errors_say_what_to_write(text, message):
    with pytest.raises(ValueError, match=message):
        parse_target(text)


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "tpu-v4"),
        ("TPU v5 lite", "tpu-v5e"),
        ("TPU v5e", "tpu-v5e"),
        ("TPU v5", "tpu-v5p"),
        ("TPU v5p", "tpu-v5p"),
        ("TPU v6 lite", "tpu-v6e"),
        ("TPU7x", "tpu-7x"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("cpu", "cpu"),
    ],
)
def test_device_kinds_lead_to_chips(device_kind, name):
    assert chip_for(device_kind) is chip(name)


@pytest.mark.parametrize("device_kind", ["NVIDIA A100-SXM4-40GB", "TPU v3", ""])
def test_an_unknown_device_kind_is_no_chip(device_kind):
    assert chip_for(device_kind) is None
