"""Many runs, one row each, whatever happens to any of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling_lab import cost, record, studies
from scaling_lab.config import configure, with_data
from scaling_lab.record import RunRecord
from scaling_lab.sweep import driver, estimate_seconds, grid, provenance, sweep, worker
from scaling_lab.sweep import run as run_room
from scaling_lab.sweep.run import asked, run_here

TINY = {
    "layers": 1,
    "length": 32,
    "batch": 8,
    "steps": 3,
    "evaluate_batches": 1,
    "target": "cpu:8",
}


@pytest.fixture
def words(text):
    return {**TINY, "data": (str(text),)}


# --- The grid


def test_grid_is_the_product_with_later_words_fastest():
    configs = grid({"layout": ["ddp", "fsdp"], "batch": (8, 16), "seed": 7}, 8)
    found = [(c.layout.name, c.batch, c.seed) for c in configs]
    assert found == [
        ("ddp:data=8", 8, 7),
        ("ddp:data=8", 16, 7),
        ("fsdp:fsdp=8", 8, 7),
        ("fsdp:fsdp=8", 16, 7),
    ]
    assert len({config.id for config in configs}) == 4


def test_several_files_are_one_value_of_the_grid():
    (config,) = grid({"data": ("a.txt", "b.txt")}, 1)
    assert config.data.source == ("a.txt", "b.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"famly": "llama"}, "famly"),
        ({"family": ["llama", "lama"]}, "did you mean llama"),
        ({"size": ["toy", "8B!"]}, "unknown size of llama '8B!'; did you mean 8b"),
        ({"layout": ["fsdp", "fdsp"]}, "did you mean fsdp"),
        ({"bacth": 8}, "did you mean batch"),
    ],
)
def test_an_unknown_word_stops_before_anything_runs(words, message):
    with pytest.raises((ValueError, TypeError), match=message):
        grid(words, 8)


def test_the_estimate_adds_up_and_grows_with_work():
    short, long = grid({"steps": (10, 1000), "target": "cpu:8"})
    assert estimate_seconds([short]) < estimate_seconds([long])
    both = estimate_seconds([short]) + estimate_seconds([long])
    assert estimate_seconds([short, long]) == pytest.approx(both)
    assert 0 < estimate_seconds([short]) < 3600


# --- What happens to a row, told by processes that only pretend to run

PRETEND = """
import json, os, sys, time
json.load(sys.stdin)
act, mark, row = sys.argv[1:]
def tell(**facts): print(mark + json.dumps(facts), flush=True)
print("a library that talks")
tell(event="compiling")
tell(event="step", number=1, loss=2.0, seconds=0.1)
if act == "ok": tell(event="record", record=json.loads(row))
if act == "sleep": time.sleep(60)
if act == "kill": os.kill(os.getpid(), 9)
if act == "abort":
    print("F0000 unknown flag", file=sys.stderr, flush=True)
    os.abort()
if act == "allocate":
    print("terminate: std::bad_alloc", file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture
def pretend(monkeypatch):
    """Makes runs that act by their seed, and lists the seeds that were started."""
    started, acts = [], {}

    def start(config, cache_dir, stderr):
        started.append(config.seed)
        row = RunRecord(
            id=config.id,
            environment=provenance.environment(config.xla_flags),
            status="ok",
            asked=asked(config),
        )
        act = acts.get(config.seed, "ok")
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", PRETEND, act, worker.MARK, row.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        process.stdin.write(json.dumps(config.to_json()))
        process.stdin.close()
        started.pids.append(process.pid)
        return process

    class Started(list):
        pids = []

    started = Started()
    monkeypatch.setattr(driver.worker, "start", start)
    return acts, started


def seeds(words, count, **more):
    return grid({**words, "seed": list(range(count)), **more})


def test_finished_runs_are_kept(pretend, words, cache, tmp_path):
    _, started = pretend
    configs = seeds(words, 2)
    first = sweep(configs, tmp_path, cache_dir=cache)
    assert (first.ran, first.kept, first.stale, first.failed) == (2, 0, 0, ())
    again = sweep(seeds(words, 3), tmp_path, cache_dir=cache)
    assert (again.ran, again.kept, again.stale) == (1, 2, 0)
    assert started == [0, 1, 2]
    assert [row.asked["seed"] for row in again.records] == [0, 1, 2]
    assert len(record.read(tmp_path)) == 3


def test_other_code_makes_rows_stale(pretend, words, cache, tmp_path, monkeypatch):
    _, started = pretend
    sweep(seeds(words, 1), tmp_path, cache_dir=cache)
    monkeypatch.setattr(provenance, "code_digest", lambda: "another")
    kept = sweep(seeds(words, 1), tmp_path, cache_dir=cache, keep_stale=True)
    assert (kept.ran, kept.kept, kept.stale) == (0, 1, 1)
    again = sweep(seeds(words, 1), tmp_path, cache_dir=cache)
    assert (again.ran, again.kept, again.stale) == (1, 0, 1)
    fresh = sweep(seeds(words, 1), tmp_path, cache_dir=cache)
    assert (fresh.ran, fresh.kept, fresh.stale) == (0, 1, 0)
    assert started == [0, 0]


def test_other_flags_or_versions_make_rows_stale(
    pretend, words, cache, tmp_path, monkeypatch
):
    sweep(seeds(words, 1), tmp_path, cache_dir=cache)
    with monkeypatch.context() as changed:
        changed.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        found = sweep(seeds(words, 1), tmp_path, cache_dir=cache, keep_stale=True)
        assert found.stale == 1
    changed = {**provenance.versions(), "jax": "0.0.0"}
    monkeypatch.setattr(provenance, "versions", lambda: changed)
    found = sweep(seeds(words, 1), tmp_path, cache_dir=cache, keep_stale=True)
    assert found.stale == 1


def test_other_flags_of_the_run_are_another_run(words):
    one, other = grid({**words, "xla_flags": ["", "--xla_cpu_use_onednn=false"]})
    assert one.id != other.id
    assert provenance.environment(one.xla_flags) != provenance.environment(
        other.xla_flags
    )


def test_no_failure_stops_the_rest(pretend, words, cache, tmp_path):
    acts, started = pretend
    acts |= {1: "kill", 2: "abort", 3: "allocate", 4: "silent"}
    found = sweep(seeds(words, 6), tmp_path, cache_dir=cache)
    statuses = [row.status for row in found.records]
    assert statuses == ["ok", "oom", "crashed", "oom", "crashed", "ok"]
    reasons = [row.reason for row in found.records]
    assert "at 'step 1': killed by signal 9, as the system does" in reasons[1]
    assert "killed by signal 6. F0000 unknown flag" in reasons[2]
    assert "exit code 3. terminate: std::bad_alloc" in reasons[3]
    assert "exit code 0" in reasons[4]
    assert len(found.failed) == 4
    for row in found.failed:
        assert row.asked["config"] and row.provenance["versions"]
    # A failed run is tried again; a finished one is not.
    acts.clear()
    again = sweep(seeds(words, 6), tmp_path, cache_dir=cache)
    assert (again.ran, again.kept, again.failed) == (4, 2, ())
    assert started == [0, 1, 2, 3, 4, 5, 1, 2, 3, 4]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_timeout_is_a_row_and_its_process_is_gone(pretend, words, cache, tmp_path):
    acts, started = pretend
    acts[0] = "sleep"
    found = sweep(seeds(words, 1), tmp_path, cache_dir=cache, timeout=3.0)
    (row,) = found.failed
    assert row.status == "timeout"
    assert row.reason == "still at 'step 1' after 3 s; raise --timeout"
    assert gone(started.pids[0])


def test_an_interrupt_ends_the_process_and_keeps_what_was_finished(
    pretend, words, cache, tmp_path
):
    acts, started = pretend
    acts[1] = "sleep"

    def watch(event, config, facts):
        if event == "step" and config.seed == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(seeds(words, 3), tmp_path, cache_dir=cache, watch=watch)
    assert [row.asked["seed"] for row in record.read(tmp_path)] == [0]
    assert len(started) == 2 and all(gone(pid) for pid in started.pids)


def test_a_torn_line_costs_itself(pretend, words, cache, tmp_path):
    sweep(seeds(words, 2), tmp_path, cache_dir=cache)
    path = tmp_path / record.FILE_NAME
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="1 unreadable line"):
        found = sweep(seeds(words, 2), tmp_path, cache_dir=cache)
    assert (found.ran, found.kept) == (1, 1)
    with pytest.warns(UserWarning, match="1 unreadable line"):
        assert len(record.read(tmp_path)) == 2


ILLEGAL = [
    ({"layout": "tensor=3"}, "a mesh of 3 devices and the target has 8"),
    ({"layout": "fsdp=16"}, "--target cpu:16"),
    ({"layout": "fsdp=8", "batch": 12}, "dim B=12 (batch) does not divide"),
    ({"layout": "tensor=8", "layers": 1, "family": "gpt2", "length": 4096}, "1024"),
    ({"remat": "save:fnn/up"}, "did you mean ffn/up"),
    ({"accumulate": 3}, "nearest accumulate: 2, 4, 1"),
    ({"accumulate": 0}, "accumulate=0: must be at least 1"),
    ({"batch": 0}, "batch=0: must be at least 1"),
    ({"batch": -8}, "batch=-8: must be at least 1"),
    ({"precision": "bf16"}, "did you mean bfloat16"),
]


def test_what_cannot_be_is_a_row_and_starts_nothing(pretend, words, cache, tmp_path):
    _, started = pretend
    configs = [configure(**{**words, **case}) for case, _ in ILLEGAL]
    assert estimate_seconds(configs) >= 0
    found = sweep([*configs, *seeds(words, 1)], tmp_path, cache_dir=cache)
    for row, (case, message) in zip(found.records, ILLEGAL, strict=False):
        assert row.status == "illegal", case
        assert message in row.reason, case
        assert row.compiled is None and row.measured is None
    assert found.records[-1].status == "ok" and started == [0]
    assert "illegal" in studies.table(studies.frame(tmp_path))


def test_missing_data_is_said_before_anything_runs(pretend, words, cache, tmp_path):
    _, started = pretend
    missing = tmp_path / "notse.txt"
    (tmp_path / "notes.txt").write_text("here")
    with pytest.raises(FileNotFoundError, match=r"notse.txt.*nearest: notes.txt"):
        sweep(seeds({**words, "data": (str(missing),)}, 1), tmp_path / "out")
    assert not started and not (tmp_path / "out").exists()


def test_other_text_is_another_run(words, cache, tmp_path):
    path = tmp_path / "a.txt"
    ids = []
    for letters in ("abc ", "abd "):
        path.write_text(letters * 2000)
        config, _ = with_data(configure(**{**words, "data": (str(path),)}), cache)
        ids.append(config.id)
    assert ids[0] != ids[1]


# --- What a process is started with


def test_a_process_gets_its_devices_flags_and_cache(words, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--of_the_shell=1")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    config = configure(**{**words, "xla_flags": "--of_the_run=2"})
    env = worker.environment_for(config, tmp_path)
    assert env["JAX_PLATFORMS"] == "cpu"
    assert env["JAX_NUM_CPU_DEVICES"] == "8"
    assert int(env["NPROC"]) > 8  # a thread for every collective that is begun
    assert env["XLA_FLAGS"] == "--of_the_shell=1 --of_the_run=2"
    assert env["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "compiled")


def test_provenance_names_what_a_number_depends_on(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    found = provenance.provenance("--b=2", seed=3)
    assert found["xla_flags"] == "--a=1 --b=2"
    assert found["seed"] == 3
    assert {"python", "jax", "jaxlib", "flax", "optax"} <= set(found["versions"])
    assert found["host"]["cpus"] == os.cpu_count()
    assert len(found["code"]) == 16


def test_the_code_digest_sees_every_file(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "a.py").write_text("x = 1\n")
    found = []
    for name, body in (("a.py", "x = 1\n"), ("a.py", "x = 2\n"), ("b.py", "")):
        (package / "deep" / name).write_text(body)
        monkeypatch.setattr(provenance, "PACKAGE", package)
        found.append(provenance.code_digest.__wrapped__())
    assert len(set(found)) == 3


# --- Real runs


def test_a_run_that_explodes_names_step_and_tensor(words, cache, quick_compiles):
    config = configure(
        **{**words, "target": "cpu:1", "layout": "ddp", "steps": 6},
        learning_rate=1e30,
        warmup=1,
        clip=None,
    )
    heard = []
    row = run_here(config, cache_dir=cache, tell=lambda event, **f: heard.append(event))
    assert row.status == "crashed"
    assert row.reason.startswith("NotFinite: step ")
    assert "first bad tensor: " in row.reason and "lower learning rate" in row.reason
    assert "Traceback" not in row.reason and "File" not in row.reason
    # What came before the crash is kept.
    assert row.compiled["compile_seconds"] > 0 and row.measured is None
    assert heard[:2] == ["compiling", "compiled"] and "step" in heard


def test_no_number_carries_the_name_of_another_machine(words, cache):
    config = configure(**{**words, "target": "h100:1x8", "layout": "fsdp=8"})
    row = run_here(config, cache_dir=cache)
    assert row.status != "ok" and row.measured is None
    assert "target h100:1x8 is not this machine" in row.reason
    assert "scaling-lab explain --target h100:1x8" in row.reason


def test_devices_that_this_process_cannot_simulate_any_more(words, cache, monkeypatch):
    """Not sent to the target that was asked for: JAX has started with what it has."""
    wide = {**words, "target": "cpu:16", "layout": "fsdp=16", "batch": 16}
    row = run_here(configure(**wide), cache_dir=cache)
    assert row.status != "ok" and "--target cpu" not in row.reason
    said = "wants 16 simulated device(s) and this process has 8 of kind 'cpu'"
    assert said in row.reason and "JAX_NUM_CPU_DEVICES=16" in row.reason
    monkeypatch.setattr(run_room, "chip_for", lambda kind: None)
    row = run_here(configure(**words), cache_dir=cache)
    assert "--target cpu" not in row.reason and "run_sweep" in row.reason


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no room"), "oom"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), "oom"),
        (KeyError("odd"), "crashed"),
    ],
)
def test_errors_of_a_run_become_its_status(words, cache, monkeypatch, error, status):
    from scaling_lab.sweep import run

    def fail(config):
        raise error

    monkeypatch.setattr(run, "make_program", fail)
    row = run_here(configure(**words, layout="fsdp=8"), cache_dir=cache)
    assert row.status == status
    assert type(error).__name__ in row.reason and "in fail" in row.reason


@pytest.fixture(scope="module")
def swept(text, cache, tmp_path_factory):
    """Two real runs of one program: the same in all but the seed."""
    out = tmp_path_factory.mktemp("swept")
    words = {**TINY, "data": (str(text),), "layout": "fsdp=4,tensor=2+sequence"}
    heard = []
    configs = seeds(words, 2)

    def watch(event, config, facts):
        heard.append((event, config.seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        found = sweep(configs, out, cache_dir=cache, watch=watch)
    return found, configs, heard


def test_a_real_record_is_complete(swept):
    summary, configs, _ = swept
    for row in summary.records:
        assert (row.status, row.reason) == ("ok", None)
        wanted = {"family": "llama", "size": "toy", "mesh": {"fsdp": 4, "tensor": 2}}
        wanted |= {"devices": 8, "simulated": True, "batch": 8, "steps": 3}
        assert wanted.items() <= row.asked.items()
        assert row.asked["data"]["digest"]
        assert row.measured["step_seconds"]["repeats"] == 1
        assert len(row.measured["loss"]["values"]) == 3
        assert row.measured["held_out"]["final"] > 0
        assert row.measured["tokens_per_second"] > 0
        assert set(row.measured["mfu"].values()) == {None}
        assert row.compiled["peak_bytes"] > 0 and row.compiled["collectives"]
        assert row.provenance["host"]["device_kind"] == "cpu"
    predicted, compiled = summary.records[0].predicted, summary.records[0].compiled
    assert predicted["bytes_per_device"] == cost.explain(configs[0]).bytes_by()
    # A step is given the state, its own part of four arrays of a batch, its number.
    given = 4 * (8 * 32 * 4 // 4) + 4
    assert compiled["argument_bytes"] == predicted["state_bytes"] + given


def test_the_second_run_of_a_program_is_spared_the_compiler(swept):
    first, second = swept[0].records
    assert first.compiled["cache_hit"] is False
    assert second.compiled["cache_hit"] is True
    assert first.measured["loss"]["values"] != second.measured["loss"]["values"]


def test_a_real_sweep_is_told_as_it_goes_and_not_run_twice(swept, cache):
    summary, configs, heard = swept
    for seed in (0, 1):
        own = [event for event, config_seed in heard if config_seed == seed]
        middle = ["compiling", "compiled", *["step"] * 3, "evaluating"]
        assert own == ["start", *middle, "end"]
    assert summary.ran == 2
    again = sweep(configs, summary.path.parent, cache_dir=cache)
    assert (again.ran, again.kept, again.stale) == (0, 2, 0)
    assert again.records == summary.records


# --- From a shell, killed


def start_sweep(text, cache, out, count=3, steps=3):
    """`scaling-lab sweep` in a process group of its own."""
    words = ["--layers", "1", "--length", "32", "--batch", "8", "--steps", str(steps)]
    words += ["--target", "cpu:1", "--layout", "ddp", "--evaluate-batches", "0"]
    words += ["--seed", *map(str, range(count)), "--data", str(text), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-c", "from scaling_lab.cli import main; main()"]
        + ["sweep", *words],
        env={**os.environ, "SCALING_LAB_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def children_of(pid):
    """Processes started by a process."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def wait_for(true, process=None, seconds=300):
    for _ in range(seconds * 10):
        if true():
            return
        if process is not None:
            assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError(f"nothing after {seconds} s")


def lines_of(out):
    path = out / record.FILE_NAME
    return len(path.read_bytes().splitlines()) if path.exists() else 0


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds processes through /proc"
)


@pytest.mark.slow
@needs_proc
def test_a_killed_sweep_loses_the_run_in_flight_and_nothing_else(text, cache, tmp_path):
    process = start_sweep(text, cache, tmp_path)
    wait_for(lambda: lines_of(tmp_path) == 1 and children_of(process.pid), process)
    (child,) = children_of(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    (kept,) = record.read(tmp_path)
    assert kept.status == "ok"
    wait_for(lambda: gone(child))  # nobody listens to it any more
    process = start_sweep(text, cache, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "2 ran, 1 kept" in said
    rows = record.read(tmp_path)
    assert rows[0] == kept
    assert [row.asked["seed"] for row in rows] == [0, 1, 2]
    assert all(row.status == "ok" for row in rows)


@pytest.mark.slow
@needs_proc
def test_control_c_exits_130_and_leaves_no_process(text, cache, tmp_path):
    process = start_sweep(text, cache, tmp_path, count=1, steps=100_000)
    wait_for(lambda: children_of(process.pid), process)
    (child,) = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "stopped; what was finished is on disk" in said
    assert gone(child)
    assert lines_of(tmp_path) == 0


@pytest.mark.slow
@needs_proc
def test_a_killed_run_is_a_row_and_the_others_go_on(text, cache, tmp_path):
    process = start_sweep(text, cache, tmp_path, count=2)
    wait_for(lambda: children_of(process.pid), process)
    (child,) = children_of(process.pid)
    os.kill(child, signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    first, second = record.read(tmp_path)
    assert (first.status, second.status) == ("oom", "ok")
    assert "killed by signal 9" in first.reason
    assert "RuntimeWarning" not in first.reason
