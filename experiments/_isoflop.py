"""What an isoFLOP study does with its runs: run them, tabulate and keep them."""

import dataclasses
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaling_lab import cost, record, sweep
from scaling_lab.config import RunConfig, with_data
from scaling_lab.data import store
from scaling_lab.sweep.driver import Runner

#: One run as numbers.
Point = dict[str, Any]
#: Seconds between two lines about a run that goes on.
QUIET_SECONDS = 60.0


def flops_of(config: RunConfig) -> float:
    """What a run spends: 6 N D."""
    return 6.0 * cost.parameters(config) * config.tokens_per_step * config.steps


class Clock:
    """How long the rest will take, by what went before in this call."""

    def __init__(self, configs: Sequence[RunConfig], say: Callable[[str], None]):
        self.total = sum(map(flops_of, configs))
        self.flops = {config.id: flops_of(config) for config in configs}
        self.kept, self.started = 0.0, 0
        self.share: dict[str, float] = {}
        self.say, self.lock = say, threading.Lock()
        self.start = self.last = time.monotonic()

    def __call__(self, event: str, config: RunConfig, facts: dict[str, Any]) -> None:
        with self.lock:
            self.started += event == "start"
            if event == "kept":
                self.kept += self.flops[config.id]
            elif event == "step":
                self.share[config.id] = facts["number"] / config.steps
            elif event == "end":
                self.share[config.id] = 1.0
                row = facts["record"]
                found = (row.measured or {}).get("held_out") or {}
                told = f"{found['final']:.4f} bits a byte" if found else row.reason
                self.say(f"{label(config)}: {row.status}, {told}; {self.left()}")
            now = time.monotonic()
            if event == "step" and now - self.last > QUIET_SECONDS:
                self.last = now
                step = f"step {facts['number']} of {config.steps}"
                self.say(f"{label(config)}: {step}; {self.left()}")

    def left(self) -> str:
        """The remaining time in words."""
        done = sum(share * self.flops[which] for which, share in self.share.items())
        if not done:
            return "remaining time not known yet"
        rate = done / (time.monotonic() - self.start)
        seconds = (self.total - self.kept - done) / rate
        hours, minutes = divmod(round(seconds / 60), 60)
        about = f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
        return f"about {about} left ({rate / 1e9:.0f} GFLOP/s)"


def label(config: RunConfig) -> str:
    """A run in a few words."""
    return (
        f"{flops_of(config):.2g} FLOP, width {config.model.D}, seed {config.seed}, "
        f"{config.steps} steps"
    )


def read(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The configs with their text read, as their records know them."""
    return [with_data(config)[0] for config in configs]


def run_all(
    configs: Sequence[RunConfig],
    out: Path,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    most: int | None = None,
    keep_stale: bool = False,
    run: Runner | None = None,
) -> list[record.RunRecord]:
    """Runs what has no record yet, so many side by side; the records there are.

    Args:
      jobs: runs side by side. most: how many new runs to start.

    Side by side every process has one thread: products this small gain little from
    more, and two at once nearly double what is done.
    """
    if jobs > 1:
        os.environ["NPROC"] = "1"  # XLA's own word for the size of its pool
    configs = read(configs)
    clock, waiting = Clock(configs, say), queue.SimpleQueue[RunConfig]()
    for config in configs:
        waiting.put(config)
    options: dict[str, Any] = {"keep_stale": keep_stale, "watch": clock, "run": run}
    found: dict[str, record.RunRecord] = {}
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not failed and (most is None or clock.started < most):
                config = waiting.get_nowait()
                found[config.id] = sweep.sweep([config], out, **options).records[0]
        except queue.Empty:
            return
        except BaseException as error:  # whoever waits for this thread must know
            failed.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [found[config.id] for config in configs if config.id in found]


def points_of(rows: Sequence[record.RunRecord]) -> list[Point]:
    """Budget, size, tokens, seed, loss and seconds of every run.

    A budget is told to one digit: steps are whole.
    """
    found = []
    for row in rows:
        asked, measured = row.asked, row.measured or {}
        n, d = asked["params"], asked["steps"] * asked["tokens_per_step"]
        found.append(
            {
                "budget": float(f"{6 * n * d:.0e}"),
                "width": asked["config"]["model"]["D"],
                "params": n,
                "tokens": d,
                "seed": asked["seed"],
                "loss": measured["held_out"]["final"],
                "seconds": row.provenance.get("seconds"),
            }
        )
    return found


def spreads(points: Sequence[Point]) -> dict[float, float]:
    """Of each budget the standard deviation of the size that has several seeds."""
    losses: dict[tuple[float, int], list[float]] = {}
    for each in points:
        losses.setdefault((each["budget"], each["params"]), []).append(each["loss"])
    return {
        budget: statistics.stdev(found)
        for (budget, _), found in losses.items()
        if len(found) > 1
    }


def small(row: record.RunRecord) -> record.RunRecord:
    """A record without what this question does not ask: compiled, every clock."""
    measured = dict(row.measured or {})
    loss = dict(measured.get("loss") or {})
    values, _ = loss.pop("values", []), loss.pop("steps", None)
    every = max(1, len(values) // 40)
    kept = {
        "loss": {**loss, f"every_{every}": [round(v, 4) for v in values[::every]]},
        "held_out": measured.get("held_out"),
    }
    return dataclasses.replace(row, predicted=None, compiled=None, measured=kept)


def keep(rows: Sequence[record.RunRecord], path: Path) -> None:
    """Writes the small records."""
    store.write(path, "".join(small(row).to_json() + "\n" for row in rows))
