"""Chips and targets: a contract for every file, and how texts are read."""

import csv
import dataclasses
import importlib
import math

import pytest

from scaling_lab.hardware import (
    Chip,
    Target,
    chip,
    chip_for,
    chips,
    parse_target,
    target_of,
)

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
#: What the table lacks: variants that published runs name, with sources of their own.
BESIDE_THE_TABLE = {
    *("a100-40", "a800", "b300", "cpu", "gb300", "h100-hbm2e", "h800", "v100"),
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
    assert set(found.flops_per_second) <= {*PRECISIONS, "float16"}
    numbers = [
        value
        for field in dataclasses.fields(found)
        if isinstance(value := getattr(found, field.name), int | float)
        and field.name not in ("torus_dims", "cube")
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
    # A V100 has no bfloat16.
    precision = "float16" if name == "v100" else "bfloat16"
    assert found.flops_per_second[precision] > 1e14
    assert found.hbm_bytes and found.hbm_bytes > 1e10
    assert found.hbm_bytes_per_second and found.link_bytes_per_second
    assert found.network_bytes_per_second and found.scale_up_chips
    assert found.link_bytes_per_second > found.network_bytes_per_second


def test_chips_agree_with_the_table(shared):
    lines = (shared / "data" / "hardware.csv").read_text("utf-8").splitlines()
    rows = {row["chip"]: row for row in csv.DictReader(lines)}
    assert set(TABLE_NAMES) == set(chips()) - BESIDE_THE_TABLE
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


def test_every_machine_of_the_published_runs_is_a_chip(shared):
    path = shared / "data" / "published_runs" / "published_runs.csv"
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    for row in rows:
        found = chip(row["hardware"])
        count = int(float(row["chips"])) // found.devices_per_chip
        assert target_of(found.name, count).chips == count, row["run"]


@pytest.mark.parametrize("name", chips())
def test_every_chip_can_be_compiled_for_or_says_why_not(name):
    found = chip(name)
    assert (found.compiler is None) == bool(found.no_compiler)
    assert found.compiler in (None, "cpu", "gpu", "tpu")
    assert bool(found.compile_name) == (found.compiler == "tpu")
    assert (found.gpu is not None) == (found.compiler == "gpu")
    if found.compiler in ("gpu", "tpu"):
        assert found.device_hbm_bytes is not None and found.hbm_bytes is not None
        # GiB sold as GB, or a little kept back by the compiler or the driver.
        ratio = found.device_hbm_bytes * found.devices_per_chip / found.hbm_bytes
        assert 0.95 < ratio < 1.10, ratio
    if found.gpu is not None:
        assert found.gpu.source and found.gpu.memory_bytes == found.usable_hbm_bytes
        assert found.gpu.capability >= (8, 0)


@pytest.mark.parametrize("name", [n for n in chips() if chip(n).compiler == "tpu"])
def test_a_tpu_clock_times_its_matrix_units_is_its_peak(name):
    found = chip(name)
    units = found.flops_per_second["bfloat16"] / found.clock_hz
    width = 256 if name in ("tpu-v6e", "tpu-7x") else 128
    arrays = units / (2 * width**2) / found.cores_per_chip
    assert arrays == pytest.approx(round(arrays), rel=0.01) and round(arrays) == 4


def test_no_name_means_two_chips():
    aliases = [alias for name in chips() for alias in chip(name).aliases]
    assert len(set(aliases)) == len(aliases) and not set(aliases) & set(chips())
    for name in chips():
        assert all(chip(alias) is chip(name) for alias in chip(name).aliases)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a100-80:2x8", "a100:2x8"),
        ("a100-40gb:1x8", "a100-40:1x8"),
        ("h100-hbm2e-500w:32x8", "h100-hbm2e:32x8"),
        ("trillium:16x16*2", "tpu-v6e:16x16*2"),
        ("v5p:8x4x4", "tpu-v5p:4x4x8"),
        ("tpu-v5e:16x8", "tpu-v5e:8x16"),
        ("ironwood:2x2x1", "tpu-7x:2x2x1"),
    ],
)
def test_other_names_and_orders_mean_the_same_machine(text, canonical):
    assert parse_target(text).text == canonical
    assert parse_target(canonical) == parse_target(text)


@pytest.mark.parametrize(
    ("text", "wraps"),
    [
        ("tpu-v5p:4x4x4", (True, True, True)),
        ("tpu-v5p:2x4x4", (False, False, False)),
        ("tpu-v4:4x8x8", (True, True, True)),
        ("tpu-7x:2x2x1", (False, False, False)),
        ("tpu-v5e:8x16", (False, True)),
        ("tpu-v6e:16x16", (True, True)),
        ("tpu-v6e:8x8", (False, False)),
        ("h100:8x8", ()),
        ("local", ()),
    ],
)
def test_which_axes_close_into_rings(text, wraps):
    assert parse_target(text).wraps == wraps


def test_tori_are_rising_and_within_the_pod():
    for name in chips():
        found = chip(name)
        for shape in found.topologies():
            assert math.prod(shape) <= found.scale_up_chips
            assert Target(found, shape).topology == shape
        assert len(set(found.topologies())) == len(found.topologies())
    assert (16, 20, 28) in chip("tpu-v5p").topologies()
    assert (16, 16, 16) == chip("tpu-v4").topologies()[-1]
    assert (16, 24, 24) == chip("tpu-7x").topologies()[-1]


@pytest.mark.parametrize(
    ("name", "count", "text"),
    [
        ("tpu-v5p", 512, "tpu-v5p:8x8x8"),
        ("tpu-v6e", 512, "tpu-v6e:16x16*2"),
        ("tpu-v5e", 4, "tpu-v5e:2x2"),
        ("h100", 64, "h100:8x8"),
        ("h100", 4, "h100:1x4"),
        ("gb200", 256, "gb200:4x64"),
        ("cpu", 8, "cpu:8"),
    ],
)
def test_so_many_chips_are_joined_the_usual_way(name, count, text):
    assert target_of(name, count).text == text


def test_a_number_of_chips_that_no_slice_has():
    with pytest.raises(ValueError, match="has 100 chips; the nearest have 32, 64"):
        target_of("tpu-v4", 100)


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
        ("abacus:8", "unknown chip 'abacus'; the chips are a100, a100-40, a800, b200"),
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
        ("tpu-v5p:4x4x5", "no such slice of tpu-v5p; the nearest are .*4x4x4, 4x4x8"),
        ("tpu-v5p:3x3x3", "the nearest are .*4x4x4"),
        ("tpu-v6e:4x16", "no such slice of tpu-v6e; the nearest are .*8x8"),
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
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA B300", "b300"),
        ("NVIDIA GB300", "gb300"),
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


@pytest.mark.parametrize("device_kind", ["NVIDIA L40S", "TPU v3", ""])
def test_an_unknown_device_kind_is_no_chip(device_kind):
    assert chip_for(device_kind) is None
