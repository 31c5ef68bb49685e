"""What an isoFLOP study does with its runs: run them, foretell a budget, tabulate."""

import dataclasses
import datetime
import json
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scaling_lab as lab
from scaling_lab import cost, record, sweep
from scaling_lab.config import RunConfig, with_data
from scaling_lab.data import store
from scaling_lab.studies.fitting.parabolas import bent
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


def foretell(rows: Sequence[record.RunRecord], flops: float) -> dict[str, Any]:
    """The optimum of a budget, from the runs of lower ones alone.

    The loss is the lowest of the parametric law (approach 3) fitted to the lower runs.
    Beside it stands the power law with a floor through the parabolas' lowest losses,
    three constants of three numbers, which has all their noise.
    """
    points = points_of(rows)
    table = pd.DataFrame(points).drop(columns="budget")
    isoflop = lab.fit(table, law="isoflop", bootstrap=200)
    parametric = lab.fit(table, law="chinchilla", bootstrap=0)
    path = isoflop.path
    assert path is not None
    n_best = path.n_scale * flops**path.a
    optima = [each for each in isoflop.optima if each.inside]
    return {
        "budget": flops,
        "loss": _lowest(parametric, flops),
        "loss_frontier": _floored(optima, flops),
        "params": n_best,
        "tokens": flops / (6 * n_best),
        "from_budgets": [each.flops for each in optima],
        "from_losses": [each.loss for each in optima],
        "a": path.a,
        "a_ci": isoflop.exponent("a"),
        "seed_spread": max(spreads(points).values(), default=None),
        "runs": len(points),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _lowest(fitted: Any, flops: float) -> float:
    n = np.geomspace(1e4, 1e8, 2000)
    return float(fitted.predict(n=n, d=flops / (6 * n)).min())


def _floored(optima: Sequence[Any], flops: float) -> float | None:
    """The lowest losses as a power of compute with a floor; three points give three.

    ``None`` where they do not bend as such a power does.
    """
    if len(optima) < 3:
        return None
    c = np.log([each.flops for each in optima[-3:]])
    low = np.array([each.loss for each in optima[-3:]])
    ratio = (low[0] - low[1]) / (low[1] - low[2])

    def bend(k: float) -> float:
        p = np.exp(-k * (c - c[0]))
        return (p[0] - p[1]) / (p[1] - p[2])

    grid = np.linspace(1e-3, 2.0, 4000)
    values = np.array([bend(k) for k in grid])
    place = int(np.argmin(np.abs(values - ratio)))
    if place in (0, len(grid) - 1):
        return None
    k = grid[place]
    p = np.exp(-k * (c - c[0]))
    scale = (low[0] - low[2]) / (p[0] - p[2])
    return float(low[0] + scale * (np.exp(-k * (np.log(flops) - c[0])) - p[0]))


def foretold_of(path: Path, points: Sequence[Point]) -> list[str]:
    """What was foretold beside what came, in words; nothing where nothing was."""
    if not path.exists():
        return []
    told = json.loads(path.read_text("utf-8"))
    said = f"foretold of {told['budget']:.0e} FLOP: {told['loss']:.4f} bits a byte"
    points = [each for each in points if each["budget"] == told["budget"]]
    if len({each["params"] for each in points}) < 3:
        return [f"{said}, at {told['params']:.3g} parameters"]
    low = lowest(points)
    spread = max(spreads(points).values(), default=told.get("seed_spread") or np.nan)
    return [
        f"{said}; came: {low:.4f}, off by {low - told['loss']:+.4f}; twice the seeds' "
        f"spread is {2 * spread:.4f}"
    ]


def of_longer_runs(
    points: Sequence[Point], flops: float, step: int, least: Sequence[int]
) -> list[str]:
    """After the fact: what the lower budgets' runs foretell without the short ones.

    Args:
      step: tokens of a step. least: steps of the shortest run that is kept.
    """
    lines = []
    if not any(each["budget"] == flops for each in points):
        return lines
    for steps in least:
        kept = [
            {key: each[key] for key in ("params", "tokens", "loss")}
            for each in points
            if each["budget"] < flops and each["tokens"] >= steps * step
        ]
        if len(kept) < 8:
            continue
        fitted = lab.fit(pd.DataFrame(kept), law="chinchilla", bootstrap=0)
        lines.append(
            f"after the fact, from the {len(kept)} runs of at least {steps} steps: "
            f"{_lowest(fitted, flops):.4f}"
        )
    return lines


def lowest(points: Sequence[Point]) -> float:
    """The lowest loss of a budget's parabola, as `fit` draws it."""
    x = np.log([each["params"] for each in points])
    y = np.array([each["loss"] for each in points])
    return float(bent(x, y, np.ones((1, len(x))))[1][0])


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


def write_once(path: Path, found: dict[str, Any]) -> bool:
    """Writes a prediction; an older one stays as it is."""
    if path.exists():
        return False
    store.write(path, json.dumps(found, indent=1) + "\n")
    return True
