"""Compilers of machines that are not here: what they want, what they say."""

import pytest

from scaling_lab.compile import backends, gpu, tpu
from scaling_lab.compile.backends import NoCompiler, backend_of, options
from scaling_lab.hardware import chip, chips, parse_target

GPUS = [name for name in chips() if chip(name).compiler == "gpu"]


def test_flags_become_options():
    text = " --xla_a=1 --xla_b  --xla_c=false --xla_d=x=y "
    found = {"xla_a": "1", "xla_b": True, "xla_c": False, "xla_d": "x=y"}
    assert options(text) == found and options("") == {}
    with pytest.raises(ValueError, match="'xla_a=1' is no flag"):
        options("xla_a=1")


@pytest.mark.parametrize("target", ["mi300x:1x8", "v100:1x8"])
def test_a_chip_without_a_compiler_says_so_and_what_is_left(target):
    with pytest.raises(
        NoCompiler, match=f"predictions work.*explain --target {target}"
    ):
        backend_of(parse_target(target))


@pytest.mark.parametrize(
    ("target", "backend"),
    [("tpu-v5e:2x2", "tpu"), ("h100:1x8", "gpu"), ("cpu:8", "cpu"), ("local", "cpu")],
)
def test_every_target_has_its_compiler(target, backend):
    assert backend_of(parse_target(target)).__name__ == f"scaling_lab.compile.{backend}"


@pytest.mark.parametrize(
    ("backend", "extra"), [(tpu, "tpu-compile"), (gpu, "gpu-compile")]
)
def test_a_missing_compiler_names_the_extra(backend, extra, monkeypatch):
    def missing(name):
        raise backends.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backends.importlib.metadata, "version", missing)
    with pytest.raises(NoCompiler, match=rf"pip install 'scaling_lab\[{extra}\]'"):
        backend.version()


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("text", "kind", "slices"),
    [
        ("tpu-v4:2x2x1", "TPU v4", 1),
        ("tpu-v5e:2x4", "TPU v5 lite", 1),
        ("tpu-v5e:1x1", "TPU v5 lite", 1),
        ("tpu-v5p:4x4x4", "TPU v5", 1),
        ("tpu-v6e:8x16", "TPU v6 lite", 1),
        ("tpu-v6e:4x4*2", "TPU v6 lite", 2),
        ("tpu-7x:2x2x2", "TPU7x", 1),
        ("tpu-v5p:16x20x28", "TPU v5", 1),
    ],
)
def test_the_compiler_lists_the_devices_of_a_target(text, kind, slices):
    target = parse_target(text)
    found = tpu.devices(target)
    assert len(found) == target.devices
    assert {device.device_kind for device in found} == {kind}
    assert len({getattr(device, "slice_index", 0) for device in found}) == slices


@pytest.mark.tpu
@pytest.mark.parametrize("name", [n for n in chips() if chip(n).compiler == "tpu"])
def test_the_compiler_knows_every_torus_that_a_chip_comes_in(name):
    for shape in chip(name).topologies()[:8]:
        text = f"{name}:{'x'.join(map(str, shape))}"
        assert len(tpu.devices(parse_target(text))) == parse_target(text).devices


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPUS)
def test_the_gpu_compiler_accepts_every_description(name):
    per_node = chip(name).scale_up_chips
    found = gpu.devices(parse_target(f"{name}:2x{per_node}"))
    assert len(found) == 2 * per_node and found[0].platform == "gpu"
    assert [device.process_index for device in found] == [0] * per_node + [1] * per_node


@pytest.mark.gpu
def test_a_description_gives_the_peak_of_its_chip():
    text = gpu.description(chip("h100"))
    assert "core_count: 132\n" in text and "major: 9\n" in text
    assert "units_per_core: 4 ops_per_clock: 512" in text
    clock = float(text.partition("key: 16 value { clock_rate_ghz: ")[2].split()[0])
    assert 132 * 4 * 512 * 2 * clock * 1e9 == pytest.approx(9.89e14, rel=1e-4)


LISTED = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in \
memory space hbm. Used 20.50G of 15.48G hbm. Exceeded hbm capacity by 5.02G.

Total hbm usage >= 21.02G:
    reserved        530.00M
    program          20.50G
    arguments         0B

  Largest program allocations in hbm:

  1. Size: 512.00M
     Operator: op_type="dot_general" op_name="jit(f)/ffn/up" source_file="a.py" \
source_line=7
     Shape: bf16[8,128]{1,0:T(8,128)(2,1)}
     Unpadded size: 512.00M
     ==========================

  2. Size: 4.00G
     Shape: f32[1024]
     ==========================
"""


def test_an_out_of_memory_verdict_is_read_with_its_buffers():
    found = tpu.out_of_memory(LISTED)
    assert found is not None
    assert found["peak_bytes"] == round(20.5 * 2**30)
    assert found["hbm_bytes"] == round(15.48 * 2**30)
    first, second = found["largest_buffers"]
    assert (first["bytes"], first["shape"], first["op_name"]) == (
        2**32,
        "f32[1024]",
        "",
    )
    assert second["bytes"] == 2**29 and second["source"] == "a.py:7"
    assert second["op_name"] == "jit(f)/ffn/up"
    assert tpu.out_of_memory("INTERNAL: something else") is None
