"""What the clock may say: each step waited for, warm-up left out, conventions named."""

import math
from types import SimpleNamespace

import jax
import pytest

from scaling_lab import cost, layouts, measure
from scaling_lab.config import RunConfig, configure
from scaling_lab.hardware import chip
from scaling_lab.train import NotFinite, make_program

pytestmark = pytest.mark.usefixtures("quick_compiles")


# --- The spread


def test_spread_of_known_seconds():
    seconds = [float(n) for n in range(100, -1, -1)]
    found = measure.spread(seconds)
    assert found == {
        "median": 50.0,
        "p5": 5.0,
        "p95": 95.0,
        "repeats": 101,
        "all": seconds,
    }


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [([2.0], (2.0, 2.0, 2.0, 1)), ([3.0, 1.0], (1.0, 2.0, 3.0, 2))],
)
def test_spread_of_few(seconds, wanted):
    found = measure.spread(seconds)
    assert (found["p5"], found["median"], found["p95"], found["repeats"]) == wanted


def test_spread_of_nothing_is_none_and_not_zero():
    assert measure.spread([]) is None


# --- The clock


class Clock:
    """A clock that steps and waiting move, and that writes down who looked."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.log = 0.0, list(seconds), []
        self.owed, self.waiting = 0.0, []
        monkeypatch.setattr(measure.time, "perf_counter", self.read)
        monkeypatch.setattr(measure.jax, "block_until_ready", self.wait)
        monkeypatch.setattr(measure, "check_finite", lambda *_: None)

    def read(self):
        self.log.append("clock")
        return self.now

    def wait(self, value):
        """Only waiting lets the time of what was dispatched pass."""
        self.log.append("wait")
        self.now += self.owed
        self.owed = 0.0
        return value

    def put(self, batch):
        self.log.append("put")
        self.owed += 1000.0  # moving a batch is not part of the step
        return batch

    def step(self, state, batch):
        self.log.append("step")
        self.owed += self.seconds[batch]
        return state + 1, {"loss": 10.0 - batch}

    @property
    def program(self):
        return SimpleNamespace(put=self.put, step=self.step)


def test_every_step_is_waited_for_before_the_clock_is_read(monkeypatch):
    clock = Clock(monkeypatch, [9.0, 8.0, 1.0, 2.0, 3.0])
    state, found = measure.train(clock.program, 0, range(5))
    assert clock.log == ["put", "wait", "clock", "step", "wait", "clock"] * 5
    assert state == 5
    assert found["step_seconds"]["all"] == [1.0, 2.0, 3.0]
    assert found["loss"] == {
        "steps": [1, 2, 3, 4, 5],
        "values": [10.0, 9.0, 8.0, 7.0, 6.0],
        "final": 6.0,
    }


@pytest.mark.parametrize("steps", range(measure.WARMUP + 1))
def test_warm_up_is_never_counted(monkeypatch, steps):
    clock = Clock(monkeypatch, [5.0] * steps)
    _, found = measure.train(clock.program, 0, range(steps))
    assert found["step_seconds"] is None
    assert len(found["loss"]["values"]) == steps
    assert found["loss"]["final"] is None or steps


def test_the_watcher_hears_every_step_as_it_was_timed(monkeypatch):
    clock = Clock(monkeypatch, [4.0, 3.0, 2.0])
    heard = []
    measure.train(clock.program, 0, range(3), lambda *facts: heard.append(facts))
    assert heard == [(1, 10.0, 4.0), (2, 9.0, 3.0), (3, 8.0, 2.0)]


def test_a_real_run_is_timed_and_a_loss_that_is_no_number_stops_it(tiny, packed):
    config = RunConfig(tiny("llama", L=1), layouts.parse("ddp", 1), length=32)
    program = make_program(config, jax.devices()[:1])
    batches = [packed(seed=seed) for seed in range(3)]
    state, found = measure.train(program, program.init(), batches)
    assert int(state.step) == 3
    assert found["step_seconds"]["repeats"] == 1
    assert found["step_seconds"]["median"] > 0
    assert found["host_peak_bytes"] > 2**20
    assert found["peak_bytes"] is None  # XLA:CPU does not say
    params = {**state.params, "final_norm_D": state.params["final_norm_D"] * math.nan}
    bad = type(state)(state.step, params, state.optimizer)
    with pytest.raises(NotFinite, match="step 1.*parameter final_norm_D"):
        measure.train(program, bad, batches)


# --- Throughput


def test_throughput_names_every_convention_and_no_mfu_on_a_cpu():
    config = configure(target="cpu:8", layout="fsdp=8", batch=8, length=64)
    found = measure.throughput(config, 0.5)
    assert found["tokens_per_second"] == 1024
    assert found["tokens_per_second_per_device"] == 128
    assert found["flops_per_token"] == cost.per_token(config)
    assert found["executed_flops_per_token"] == cost.executed_per_token(config)
    assert found["mfu"] == dict.fromkeys(cost.per_token(config))
    assert found["hfu"] is None
    assert found["peak_flops_per_second"] is None


def test_mfu_of_an_assumed_chip():
    words = {"size": "8b", "batch": 64, "length": 8192, "precision": "bfloat16"}
    config = configure(target="h100:1x8", layout="fsdp=8", remat="full", **words)
    found = measure.throughput(config, 10.0)
    peak = chip("h100").flops_per_second["bfloat16"]
    assert found["peak_flops_per_second"] == peak
    rate = 64 * 8192 / 10.0
    for convention, flops in cost.per_token(config).items():
        assert found["mfu"][convention] == pytest.approx(rate * flops / (8 * peak))
    assert 0 < found["mfu"]["6N"] < found["mfu"]["palm_full_attention"] < 1
    executed = rate * cost.executed_per_token(config) / (8 * peak)
    assert found["hfu"] == pytest.approx(executed)
    assert found["hfu"] > found["mfu"]["palm_full_attention_without_embedding"]


def test_mfu_counts_chips_where_a_chip_shows_two_devices():
    config = configure(
        target="tpu-v4:2x2x1", layout="fsdp=8", batch=8, precision="bfloat16"
    )
    found = measure.throughput(config, 1.0)
    peak = 4 * chip("tpu-v4").flops_per_second["bfloat16"]
    wanted = 8 * 256 * cost.per_token(config)["6N"] / peak
    assert found["mfu"]["6N"] == pytest.approx(wanted)


def test_mfu_is_none_at_a_precision_whose_peak_is_not_known():
    config = configure(target="h100:1x8", layout="fsdp=8", precision="float32")
    found = measure.throughput(config, 1.0)
    known = chip("h100").flops_per_second.get("float32")
    assert found["peak_flops_per_second"] == known
    assert (found["hfu"] is None) == (known is None)


def test_without_a_time_there_is_no_rate():
    found = measure.throughput(configure(target="h100:1x8", layout="fsdp=8"), None)
    assert found["tokens_per_second"] is None
    assert found["tokens_per_second_per_device"] is None
    assert set(found["mfu"].values()) == {None}


def test_the_chip_is_the_targets_or_that_of_the_devices_present(monkeypatch):
    named = configure(target="tpu-v5p:2x2x1", layout="fsdp=4")
    assert measure.target_chip(named).name == "tpu-v5p"
    local = configure(target="local", layout="fsdp=8")
    assert measure.target_chip(local).name == "cpu"
    device = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(measure.jax, "devices", lambda: [device])
    assert measure.target_chip(local).name == "h100"


def test_peak_bytes_are_of_the_fullest_device(monkeypatch):
    devices = [SimpleNamespace(memory_stats=lambda n=n: n) for n in (None, {}, {})]
    monkeypatch.setattr(measure.jax, "local_devices", lambda: devices)
    assert measure.device_peak_bytes() is None
    stats = [{"peak_bytes_in_use": size} for size in (3, 7, 5)]
    devices[:] = [SimpleNamespace(memory_stats=lambda n=n: n) for n in stats]
    assert measure.device_peak_bytes() == 7
