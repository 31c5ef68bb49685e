"""Runs configs one after another, each in its own process, and never loses a row."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scaling_lab import record
from scaling_lab.config import RunConfig, with_data
from scaling_lab.layouts import IllegalLayout
from scaling_lab.record import RunRecord
from scaling_lab.sweep import worker
from scaling_lab.sweep.provenance import environment, provenance
from scaling_lab.sweep.run import check_legal, row

#: What a process that has told everything may take to end.
GRACE_SECONDS = 30.0

#: Told what the sweep is doing: ``(event, config, facts)``.
Watcher = Callable[[str, RunConfig, dict[str, Any]], None]
#: Makes one config's record: ``(config, timeout, cache_dir, watch)``.
Runner = Callable[[RunConfig, float | None, Any, Watcher], RunRecord]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a sweep: its records in the order asked, and how they came."""

    path: Path
    records: tuple[RunRecord, ...]
    ran: int
    kept: int
    stale: int

    @property
    def failed(self) -> tuple[RunRecord, ...]:
        """Every record whose status is not ``ok``."""
        return tuple(r for r in self.records if r.status != "ok")


def sweep(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    keep_stale: bool = False,
    timeout: float | None = None,
    cache_dir: Any = None,
    watch: Watcher = lambda *_: None,
    run: Runner | None = None,
) -> Summary:
    """Runs every config that has no finished record of the same code, jax and flags.

    A finished record of other code, jax or flags is stale: its run runs again, unless
    `keep_stale`. Whatever stops the sweep costs the run in flight and nothing else.

    Args:
      out: a folder; its ``records.jsonl`` grows by one line a run.
      timeout: seconds a run may take before it becomes a ``timeout`` row.
      watch: called as runs go on.
      run: what makes each record; by default the run itself, in its own process.
    """
    path = record.file_of(out)
    configs = [with_data(config, cache_dir)[0] for config in configs]
    known = record.latest(record.read(path)) if path.exists() else {}
    rows: list[RunRecord] = []
    counts = {"ran": 0, "kept": 0, "stale": 0}
    for config in configs:
        finished = known.get(config.id)
        if finished is not None and finished.status != "ok":
            finished = None
        current = environment(config.xla_flags)
        stale = finished is not None and finished.environment != current
        counts["stale"] += stale
        if finished is not None and (keep_stale or not stale):
            done = finished
            counts["kept"] += 1
            watch("kept", config, {})
        else:
            watch("start", config, {"stale": stale})
            done = (run or _run)(config, timeout, cache_dir, watch)
            record.append(path, done)
            known[config.id] = done
            counts["ran"] += 1
            watch("end", config, {"record": done})
        rows.append(done)
    return Summary(path, tuple(rows), **counts)


def _run(
    config: RunConfig, timeout: float | None, cache_dir: Any, watch: Watcher
) -> RunRecord:
    """One run of a sweep; how it ended is the record's status."""
    try:
        check_legal(config)
    except IllegalLayout as error:
        return _failure(config, "illegal", str(error))
    except Exception as error:  # whatever it is, the other runs go on
        return _failure(config, "illegal", f"{type(error).__name__}: {error}")
    return run_alone(config, worker.Job(cache_dir), timeout, watch)


def run_alone(
    config: RunConfig,
    job: worker.Job,
    timeout: float | None = None,
    watch: Watcher = lambda *_: None,
) -> RunRecord:
    """A config's job in a process of its own; how it ended is the record's status."""
    deadline = time.monotonic() + timeout if timeout else None
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        process = worker.start(config, job, stderr)
        found: RunRecord | None = None
        last = "starting"
        try:
            for facts in _events(process, deadline):
                event = facts.pop("event")
                if event == "record":
                    found = RunRecord(**facts["record"])
                else:
                    last = event + (f" {facts['number']}" if event == "step" else "")
                    watch(event, config, facts)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        except TimeoutError:
            reason = f"still at {last!r} after {timeout:g} s; raise --timeout"
            return _failure(config, "timeout", reason)
        finally:
            _end(process)
        stderr.seek(0)
        tail = stderr.read()[-2000:]
    return found or _died(config, process.returncode, last, tail)


def _events(
    process: subprocess.Popen[str], deadline: float | None
) -> Iterator[dict[str, Any]]:
    """What the process tells, until it ends.

    Raises:
      TimeoutError: it went on past the deadline.
    """
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()

    def listen(stream: Any) -> None:
        try:
            for line in stream:
                lines.put(line)
        finally:
            lines.put(None)

    threading.Thread(target=listen, args=(process.stdout,), daemon=True).start()
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            line = lines.get(timeout=wait)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            return
        if line.startswith(worker.MARK):
            try:
                yield json.loads(line[len(worker.MARK) :])
            except ValueError:  # killed in the middle of a line
                continue


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _died(config: RunConfig, code: int, last: str, tail: str) -> RunRecord:
    """A process that ended without a record: killed, or crashed below Python."""
    exhausted = code == -signal.SIGKILL or "RESOURCE_EXHAUSTED" in tail
    exhausted = exhausted or "bad_alloc" in tail or "MemoryError" in tail
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    why = ", as the system does when memory runs out" if code == -9 else ""
    reason = f"process ended at {last!r}: {how}{why}. {tail.strip()[-1500:]}"
    return _failure(config, "oom" if exhausted else "crashed", reason)


def _failure(config: RunConfig, status: str, reason: str) -> RunRecord:
    return row(config, provenance(config.xla_flags, config.seed), status, reason)
