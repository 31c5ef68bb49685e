"""Steps compiled for machines that are not here, each in a process of its own."""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scaling_lab import cost
from scaling_lab import record as record_room
from scaling_lab.config import configure
from scaling_lab.cost import calibrations
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.sweep import compile_run, compiling, driver, worker
from scaling_lab.sweep.run import run_here

LOCK = Path("/tmp/libtpu_lockfile")
ASKED = (
    "argument_bytes temporary_bytes peak_bytes hbm_bytes fits step_seconds "
    "compile_seconds collectives"
)


def tiny_step(**words):
    """The smallest step that is worth compiling."""
    words = {"layers": 1, "batch": 8, "length": 128, "remat": "full"} | words
    words = {"target": "tpu-v5e:2x2", "layout": "fsdp=4"} | words
    return configure(**words)


@pytest.fixture(scope="module")
def compiled(cache, tmp_path_factory):
    """A step compiled for a TPU: its record and its module."""
    module = tmp_path_factory.mktemp("module") / "step.txt"
    return compile_run(tiny_step(), module=module, cache_dir=cache), module


@pytest.mark.tpu
def test_a_step_is_compiled_for_a_machine_that_is_not_here(compiled):
    record, module = compiled
    assert record.status == "ok", record.reason
    column = record.compiled
    assert set(ASKED.split()) <= set(column)
    assert column["compiler"].startswith("libtpu 0.0.42")
    assert column["fits"] is True and 0 < column["peak_bytes"] < column["hbm_bytes"]
    assert column["mesh"] == {"fsdp": 4} and column["compile_seconds"] > 0
    assert column["argument_bytes"] > 0 and column["step_seconds"] > 0
    kinds = {row["kind"] for row in column["collectives"]}
    assert "all-gather" in kinds
    assert {axis for row in column["collectives"] for axis in row["axes"]} == {"fsdp"}
    assert record.asked["precision"] == "bfloat16" and record.measured is None
    assert record.predicted is not None
    text = module.read_text()
    assert text.startswith("HloModule") and "is_scheduled=true" in text
    assert "num_partitions=4" in text.partition("\n")[0]


@pytest.mark.tpu
def test_arguments_are_the_state_and_the_batch_of_one_device(compiled):
    record, _ = compiled
    held = record.predicted["bytes_per_device"]
    batch = 4 * 8 // 4 * 128 * 4
    wanted = held["parameter"] + held["optimizer"] + batch
    # Rows of 32 out of 128 columns take up tiles of 128.
    assert wanted <= record.compiled["argument_bytes"] < 2 * wanted


@pytest.mark.tpu
def test_a_calibration_prices_the_same_module_again(compiled, cache):
    record, _ = compiled
    frozen = calibrations.frozen()
    same = compile_run(tiny_step(), cache_dir=cache, calibration=frozen)
    assert same.compiled["step_seconds"] == record.compiled["step_seconds"]
    assert same.predicted["step_seconds"] == record.predicted["step_seconds"]
    halves = {name: math.log(0.5) for name in ("matmul", "memory", "link", "network")}
    logs = {name: log + halves.get(name, 0) for name, log in frozen.logs.items()}
    mine = Calibration(logs, frozen.half_width)
    slow = compile_run(tiny_step(), cache_dir=cache, calibration=mine)
    for name in ("scheduled_seconds", "exposed_seconds", "step_seconds"):
        assert slow.compiled[name] > 1.05 * record.compiled[name], name
    assert slow.predicted["step_seconds"] > record.predicted["step_seconds"]
    assert slow.compiled["peak_bytes"] == record.compiled["peak_bytes"]


@pytest.mark.tpu
def test_a_verdict_is_kept_by_config_and_compiler(compiled, cache, monkeypatch):
    record, module = compiled

    def never(*_, **__):
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(driver, "run_alone", never)
    again = module.with_name("again.txt")
    seen = []
    found = compile_run(
        tiny_step(),
        module=again,
        cache_dir=cache,
        watch=lambda event, *_: seen.append(event),
    )
    assert seen == ["kept"] and found.compiled["cache_hit"] is True
    assert found.compiled | {"cache_hit": None} == record.compiled
    assert again.read_text() == module.read_text()
    for other in (
        tiny_step(batch=16),
        tiny_step(xla_flags="--xla_tpu_enable_async_collective_fusion=false"),
    ):
        with pytest.raises(AssertionError, match="again"):
            compile_run(other, cache_dir=cache)
    with pytest.raises(AssertionError, match="again"):
        compile_run(tiny_step(), cache_dir=cache, fresh=True)
    backend = compiling.backend_of(tiny_step().parsed_target())
    monkeypatch.setattr(backend, "version", lambda: "libtpu 0.0.43")
    with pytest.raises(AssertionError, match="again"):
        compile_run(tiny_step(), cache_dir=cache)


@pytest.mark.tpu
def test_a_kept_verdict_that_is_torn_is_compiled_again(compiled, cache, monkeypatch):
    kept = cache / "verdicts" / compiling.key(tiny_step())
    whole = kept.with_suffix(".json").read_text()
    kept.with_suffix(".json").write_text(whole[:100])
    try:
        assert compiling._read(kept) is None
    finally:
        kept.with_suffix(".json").write_text(whole)
    assert compiling._read(kept) is not None


@contextlib.contextmanager
def locked():
    """The lock file of a process that was killed, held by one that is alive too."""
    existed = LOCK.exists()
    with LOCK.open("a") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    if not existed:
        LOCK.unlink(missing_ok=True)


@pytest.mark.tpu
def test_flags_change_the_program_and_a_lock_file_stops_nobody(compiled, tmp_path):
    _, module = compiled
    flags = "--xla_tpu_enable_async_collective_fusion=false"
    config = tiny_step(xla_flags=flags)
    other = tmp_path / "other.txt"
    with locked():
        found = compile_run(config, module=other, cache_dir=tmp_path, timeout=300)
    assert found.status == "ok", found.reason
    assert found.asked["config"]["xla_flags"] == flags
    assert flags in found.provenance["xla_flags"]
    assert module.read_text().count("AsyncCollectiveStart") != other.read_text().count(
        "AsyncCollectiveStart"
    )


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("remat", "kernels"),
    [
        ("save:attention/attend", 3),  # forward, gradient of queries, of keys
        ("recompute:attention/attend", 4),
    ],
)
def test_attention_that_is_kept_does_not_run_again(remat, kernels, cache, tmp_path):
    module = tmp_path / "step.txt"
    found = compile_run(
        tiny_step(layers=2, remat=remat), module=module, cache_dir=cache
    )
    assert found.status == "ok", found.reason
    text = module.read_text()
    assert text.count('custom_call_target="tpu_custom_call"') == kernels


@pytest.mark.tpu
def test_steps_compile_side_by_side_and_one_failure_is_one_row(tmp_path):
    """Too large, refused by the compiler, and too slow, all at once."""
    large = tiny_step(batch=8192, length=1024, remat="none")
    wrong = tiny_step(xla_flags="--xla_tpu_bogus=1")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(compile_run, config, cache_dir=tmp_path, **words)
            for config, words in (
                (large, {"module": tmp_path / "large.txt"}),
                (wrong, {"module": tmp_path / "wrong.txt"}),
                (tiny_step(), {"timeout": 0.5}),
            )
        ]
        too_large, refused, slow = [job.result() for job in jobs]
    column = too_large.compiled
    assert too_large.status == "oom" and "GiB too much" in too_large.reason
    assert column["fits"] is False and column["peak_bytes"] > column["hbm_bytes"]
    assert column["hbm_bytes"] == pytest.approx(15.75 * 2**30)
    assert column["step_seconds"] is None and column["argument_bytes"] > 0
    first = column["largest_buffers"][0]
    assert first["verb"] == "attention/attend" and first["bytes"] > 2**30
    assert any(".py:" in (row["source"] or "") for row in column["largest_buffers"])
    assert (tmp_path / "large.txt").read_text().startswith("HloModule")
    assert refused.status == "crashed" and "xla_tpu_bogus" in refused.reason
    assert refused.compiled is None and not (tmp_path / "wrong.txt").exists()
    assert slow.status == "timeout" and "0.5 s" in slow.reason
    kept = sorted(path.suffix for path in (tmp_path / "verdicts").iterdir())
    assert kept == [".gz", ".json"], "only lasting verdicts are kept"


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("number", "says"),
    [(signal.SIGSEGV, "signal 11"), (signal.SIGKILL, "this machine's memory")],
)
def test_a_compiler_that_dies_is_a_row(number, says, tmp_path, monkeypatch):
    start = worker.start

    def start_and_kill(*args):
        process = start(*args)
        threading.Timer(1.0, os.kill, (process.pid, number)).start()
        return process

    monkeypatch.setattr(driver.worker, "start", start_and_kill)
    found = compile_run(tiny_step(), cache_dir=tmp_path)
    assert found.status == "crashed" and says in found.reason
    assert found.compiled is None
    assert not list((tmp_path / "verdicts").iterdir())


def test_what_is_no_flag_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="'xla_a=1' is no flag"):
        compile_run(tiny_step(xla_flags="xla_a=1"), cache_dir=tmp_path)


def test_the_host_compiles_too(tmp_path):
    config = tiny_step(target="cpu:2", layout="data=2", remat="none")
    found = compile_run(config, module=tmp_path / "m.txt", cache_dir=tmp_path)
    assert found.status == "ok", found.reason
    assert found.compiled["hbm_bytes"] is None and found.compiled["fits"] is None
    assert found.compiled["step_seconds"] is None
    assert found.asked["precision"] == "float32"
    assert (tmp_path / "m.txt").read_text().startswith("HloModule")


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("target", "layout"),
    [
        ("tpu-v6e:1x1", "data=1"),
        ("tpu-v4:2x2x1", "fsdp=4,tensor=2+sequence"),
        ("tpu-v5e:2x2*2", "data=2,fsdp=4"),
    ],
)
def test_other_tpus(target, layout, tmp_path):
    config = tiny_step(target=target, layout=layout)
    found = compile_run(config, cache_dir=tmp_path)
    assert found.status == "ok", found.reason
    axes = {axis for row in found.compiled["collectives"] for axis in row["axes"]}
    assert axes == {name for name, size in config.layout.mesh.items() if size > 1}
    if "*2" in target:
        assert found.compiled["links"] == {"data": "dcn", "fsdp": "ici"}


QKV = "attention/query,attention/key,attention/value,attention/attend"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "target", "layout", "words"),
    [
        pytest.param(
            *("8b", "tpu-v5p:4x4x4", "fsdp=16,tensor=4+sequence"),
            {"batch": 64, "length": 4096, "remat": f"save:{QKV}"},
            marks=pytest.mark.tpu,
            id="8b on 64 TPUs",
        ),
        pytest.param(
            *("70b", "tpu-v5p:8x8x8", "fsdp=128,context=2,tensor=2+sequence"),
            {"batch": 512, "length": 8192, "accumulate": 4},
            marks=pytest.mark.tpu,
            id="70b on 512 TPUs",
        ),
        pytest.param(
            *("8b", "h100:8x8", "data=8,fsdp=8"),
            {"batch": 128, "length": 4096, "remat": f"save:{QKV}"},
            marks=pytest.mark.gpu,
            id="8b on 64 GPUs",
        ),
        pytest.param(
            *("70b", "h100:32x8", "fsdp=32,tensor=8+sequence"),
            {"batch": 256, "length": 4096, "remat": f"save:{QKV}"},
            marks=pytest.mark.gpu,
            id="70b on 256 GPUs",
        ),
    ],
)
def test_steps_of_true_size(size, target, layout, words, tmp_path):
    """All layers: they fit, as predicted, and nothing moves that nobody asked for."""
    config = configure("llama", size, layout, target, **words)
    found = compile_run(config, cache_dir=tmp_path)
    assert found.status == "ok", found.reason
    column = found.compiled
    assert column["fits"] and column["trip_counts_known"]
    assert column["unasked"] == []
    moved = {axis for row in column["collectives"] for axis in row["axes"]}
    assert moved == set(config.layout.mesh)
    counted = cost.executed_per_token(config) * config.tokens_per_step
    chips = config.layout.devices
    assert column["flops"] * chips == pytest.approx(counted, rel=0.05)
    needed = column["needed_bytes"]
    assert found.predicted["hbm_bytes"] == pytest.approx(needed, rel=0.25)


@pytest.mark.gpu
def test_a_gpu_step(tmp_path):
    config = tiny_step(target="h100:2x2", layout="data=2,fsdp=2")
    found = compile_run(config, module=tmp_path / "m.txt", cache_dir=tmp_path)
    assert found.status == "ok", found.reason
    column = found.compiled
    assert column["compiler"].startswith("jax-cuda13-plugin")
    assert column["links"] == {"data": "dcn", "fsdp": "nvlink"}
    assert column["fits"] and column["hbm_bytes"] == 84_942_979_072
    assert "is_scheduled=true" in (tmp_path / "m.txt").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["fsdp=8", "expert=8"])
def test_a_gpu_multiplies_experts_rows_and_no_more(layout, tmp_path):
    """At Mixtral's widths, where borders between experts' rows cost little."""
    words = {"family": "mixtral", "size": "8x7b", "batch": 16, "length": 4096}
    config = tiny_step(target="h100:1x8", layout=layout, **words)
    found = compile_run(config, cache_dir=tmp_path)
    assert found.status in ("ok", "oom"), found.reason
    counted = cost.executed_per_token(config) * config.tokens_per_step
    assert found.compiled["flops"] * 8 == pytest.approx(counted, rel=0.08)


def test_accelerators_compute_in_bfloat16_unless_told():
    def precision(target, layout="fsdp=8", **words):
        return configure(target=target, layout=layout, **words).precision

    assert precision("h100:1x8") == precision("tpu-v6e:2x4") == "bfloat16"
    assert precision("h100:1x8", precision="float32") == "float32"
    assert precision("cpu:8") == precision("local") == "float32"


def test_what_is_not_here_cannot_be_run(tmp_path):
    config = dataclasses.replace(tiny_step(), steps=1)
    found = run_here(config, cache_dir=tmp_path)
    assert found.status == "crashed" and "`scaling-lab compile`" in found.reason


def test_asking_starts_no_device():
    """With a compiler's library beside it, starting JAX would look for its devices."""
    code = """
from jax._src import xla_bridge
def started(*_): raise SystemExit("devices were started")
xla_bridge.backends = started
from scaling_lab import cost
from scaling_lab import record as record_room
from scaling_lab.config import configure
from scaling_lab.sweep.run import check_legal, predicted
config = configure("llama", "toy", "fsdp=8", "tpu-v5e:2x4", batch=16, remat="full")
check_legal(config), cost.explain(config), predicted(config)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.tpu
def test_the_verb(compiled, cache, tmp_path):
    words = "compile --family llama --size toy --target tpu-v5e:2x2 --layout fsdp=4"
    words += " --layers 1 --batch 8 --length 128 --remat full"
    out = tmp_path / "out.json"
    command = [sys.executable, "-c", "from scaling_lab.cli import main; main()"]
    paths = ["--json", str(out), "--module", str(tmp_path / "out.txt")]
    env = os.environ | {"SCALING_LAB_CACHE": str(cache)}
    start = time.monotonic()
    done = subprocess.run(
        [*command, *words.split(), *paths], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "known from before" in done.stdout, time.monotonic() - start
    answer = json.loads(out.read_text())
    assert set(ASKED.split()) <= set(answer) and answer["status"] == "ok"
    assert answer["peak_bytes"] == compiled[0].compiled["peak_bytes"]
    assert (tmp_path / "out.txt").read_text() == compiled[1].read_text()
    assert "peak bytes a device" in done.stdout and "all-gather" in done.stdout


@pytest.mark.tpu
def test_a_sweep_of_compiles_keeps_its_rows(
    compiled, cache, tmp_path, capsys, monkeypatch
):
    from scaling_lab.cli.sweep import run_configs

    monkeypatch.setenv("SCALING_LAB_CACHE", str(cache))
    configs = [tiny_step(), tiny_step(batch=6), tiny_step(target="mi300x:1x4")]
    code = run_configs(configs, tmp_path, how="compile")
    assert code == 1
    first, uneven, absent = record_room.read(tmp_path)
    assert first.status == "ok" and first.measured is None
    assert first.compiled["cache_hit"], "other data, the same step"
    assert first.compiled["peak_bytes"] == compiled[0].compiled["peak_bytes"]
    assert first.id != compiled[0].id and first.asked["data"]["digest"]
    assert uneven.status == "illegal" and "batch" in uneven.reason
    assert absent.status == "crashed" and "no compiler for mi300x" in absent.reason
    assert "GiB a device" in capsys.readouterr().out
