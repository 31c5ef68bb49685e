"""How much faster than plain FSDP is what the planner chooses?

Run:     python -m experiments.the_thirty_percent [--only 8b h100] [--compile] [--json]
Takes:   seconds from results/the_thirty_percent.jsonl; with --compile half a minute a
         GPU step and some minutes a TPU step on two CPU cores, for what is not there.
Expect:  compiled tokens per second, as a ratio: at least 1.20 of *naive* at 8k tokens a
         chip and 1.30 at 2k; at least 1.00 of *tuned* at 8k and 1.10 at 2k.

All in bfloat16, with the same global batch and the same memory, none by hand:

* naive: FSDP over all devices, everything made again (remat full).
* tuned: the fastest that fits of FSDP and HSDP with one uniform policy (none, full, or
  one that names verbs) and its best microbatch, the compiler's flags its own.
* ours: the planner's best layouts, for each the policies that `plan.refine` finds best
  under the memory: verb by verb saved, made again or kept by the host, weights gathered
  once or again; on the fastest few of them two layers in a turn of the loop, the
  chip's sets of flags, and on a GPU layers written out, each kept where no slower. Once
  both bars are met the search ends.

Each side is offered the few that are predicted fastest and the compiler decides; the
numbers are constants of `_sides`. Under each point stands what gave how much: one thing
after the other, up to the one that won.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

import scaling_lab as lab
from experiments import _compiled as kept
from experiments._sides import (
    LEADERS,
    POINTS,
    Point,
    changes,
    layouts,
    naive,
    steps,
    tuned,
)
from scaling_lab import record
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of

RESULTS = kept.RESULTS / "the_thirty_percent.jsonl"
BARS = {"8k": (1.20, 1.00), "2k": (1.30, 1.10)}
CONFIGS = [naive(point) for point in POINTS]


class Compiled:
    """Compiled steps by config: those in the records, and what is compiled now."""

    def __init__(self, compiles: bool) -> None:
        self._compiles = compiles
        self._rows: dict[str, dict[str, Any] | None] = {}

    def row(self, config: lab.RunConfig, ask: bool = True) -> dict[str, Any] | None:
        """A step that fits, or ``None``.

        Args:
          ask: whether it is worth a compile, where compiles are wanted.
        """
        if self._rows.get(config.id) is None:
            compiles = ask and self._compiles and config.id not in self._rows
            found = kept.records([config], RESULTS, compiles=compiles)
            self._rows[config.id] = row_of(config, found.get(config.id))
        return self._rows[config.id]

    def fastest(self, configs: Iterable[lab.RunConfig]) -> dict[str, Any] | None:
        """The fastest that fits."""
        rows = [row for config in configs if (row := self.row(config)) is not None]
        return min(rows, key=lambda row: row["step_seconds"], default=None)

    def leaders(self, configs: list[lab.RunConfig]) -> list[lab.RunConfig]:
        """Of each mesh the fastest step there is, of the fastest few meshes."""
        rows = [(self.row(config, ask=False), config) for config in configs]
        there = [(row["step_seconds"], config) for row, config in rows if row]
        best: dict[str, lab.RunConfig] = {}
        for _, config in sorted(there, key=lambda pair: pair[0]):
            best.setdefault(str(config.layout.mesh), config)
        return list(best.values())[:LEADERS]

    def faster(self, config: lab.RunConfig, trial: lab.RunConfig) -> lab.RunConfig:
        """The trial if its step fits and is no slower."""
        now, then = (self.row(each, ask=False) for each in (config, trial))
        won = now and then and then["step_seconds"] <= now["step_seconds"]
        return trial if won else config


def chosen(point: Point, goal: float, asked: Compiled) -> list[lab.RunConfig]:
    """All that the planner had compiled, in the order in which it asked.

    First each layout under its best policy, then the best one's other policies, then
    on the fastest few what `changes` says. Once a step takes no longer than `goal`,
    nothing more is compiled; what is in the records counts, though the prediction that
    chose it then would order it otherwise now.
    """
    offered: list[lab.RunConfig] = []
    best: tuple[float, lab.RunConfig] | None = None

    def offer(config: lab.RunConfig) -> None:
        nonlocal best
        found = asked.row(config, ask=best is None or best[0] > goal)
        offered.append(config)
        if found and (best is None or found["step_seconds"] < best[0]):
            best = found["step_seconds"], config

    for config in recorded(point):
        offer(config)
    every = layouts(point)
    for policies in every:
        offer(policies[0])
    won = best and best[1].layout.mesh
    for policies in every:
        if policies[0].layout.mesh == won:
            for config in policies[1:]:
                offer(config)
    for config in asked.leaders(offered):
        for change in changes(point).values():
            trial = dataclasses.replace(config, **change)
            offer(trial)
            config = asked.faster(config, trial)
    return offered


def recorded(point: Point) -> list[lab.RunConfig]:
    """What this experiment had compiled at a point."""
    first = naive(point)
    rows = record.latest(record.read(RESULTS)).values() if RESULTS.exists() else ()
    every = [lab.RunConfig.from_json(row.asked["config"]) for row in rows]
    return [
        each
        for each in every
        if (each.model, each.target) == (first.model, first.target)
        and (each.batch, each.length) == (first.batch, first.length)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="words of a point's line")
    parser.add_argument("--compile", action="store_true", help="what is not there")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    points = [p for p in POINTS if all(word in p.said for word in given.only)]
    found = {point.said: answer(point, given.compile) for point in points}
    print(json.dumps(found, indent=1) if given.json else text(found))


def answer(point: Point, compiles: bool) -> dict[str, Any]:
    """The three sides' best compiled steps, their ratios and the ablation."""
    first, asked = naive(point), Compiled(compiles)
    bars = dict(zip(("naive", "tuned"), BARS[point.load], strict=True))
    sides = {"naive": [first], "tuned": tuned(point)}
    best = {name: asked.fastest(configs) for name, configs in sides.items()}
    goals = [side["step_seconds"] / bars[name] for name, side in best.items() if side]
    sides["ours"] = chosen(point, min(goals, default=0.0), asked)
    rows = [row for config in sides["ours"] if (row := asked.row(config, ask=False))]
    best["ours"] = min(rows, key=lambda row: row["step_seconds"], default=None)
    found: dict[str, Any] = {name: side for name, side in best.items() if side}
    if missing := [name for name, side in best.items() if side is None]:
        return found | {"missing": f"no compiled step: {', '.join(missing)}"}
    for name, bar in bars.items():
        ratio = found[name]["step_seconds"] / found["ours"]["step_seconds"]
        found |= {f"over_{name}": ratio, f"{name}_met": ratio >= bar}
    won = next(c for c in sides["ours"] if c.id == found["ours"]["id"])
    found["ablation"] = {
        name: {
            "predicted_seconds": float(predict(points_of([config])).step_seconds[0]),
            "step_seconds": (asked.row(config) or {}).get("step_seconds"),
        }
        for name, config in steps(won, first).items()
    }
    return found


def row_of(config: lab.RunConfig, record: Any) -> dict[str, Any] | None:
    """What is said of a compiled step; ``None`` of one that is not, or does not fit."""
    column = (record.compiled if record and record.status == "ok" else None) or {}
    if not column.get("fits"):
        return None
    return {
        "id": config.id,
        "layout": config.layout.name,
        "remat": config.remat,
        "microbatches": config.accumulate,
        "flags": config.xla_flags,
        "stack": config.stack,
        "step_seconds": column["step_seconds"],
        "predicted_seconds": (record.predicted or {}).get("step_seconds"),
        "exposed_seconds": column["exposed_seconds"],
        "copy_seconds": column["copy_seconds"],
        "peak_bytes": column["peak_bytes"],
    }


def text(found: dict[str, dict[str, Any]]) -> str:
    """One line a point, then how each side is laid out and what gave how much."""
    lines = []
    for name, row in found.items():
        if "missing" in row:
            lines.append(f"{name} missing: {row['missing']}")
            continue
        misses = [side for side in ("naive", "tuned") if not row[f"{side}_met"]]
        short = f"   below its bar: {', '.join(misses)}" if misses else ""
        ratios = " ".join(
            f"{side}={_down(row[f'over_{side}']):.2f}x" for side in ("naive", "tuned")
        )
        lines.append(f"{name} {ratios}{short}")
    for name, row in found.items():
        lines.append(f"\n{name}")
        for side in ("naive", "tuned", "ours"):
            if side in row:
                lines.append(_line(side, row[side]))
        for part, each in row.get("ablation", {}).items():
            compiled = each["step_seconds"]
            said = f"{compiled:8.4f} s" if compiled else "no step that fits,"
            lines.append(
                f"    {part:18} {said} compiled, {each['predicted_seconds']:8.4f} s "
                "predicted"
            )
    return "\n".join(lines)


def _down(ratio: float) -> float:
    """A ratio cut after two digits: what is below a bar does not read as on it."""
    return math.floor(ratio * 100 + 1e-9) / 100


def _stacked(stack: str) -> str:
    said = {"unroll": "  layers written out", "scan:2": "  two layers a turn"}
    return said.get(stack, "")


def _line(side: str, row: dict[str, Any]) -> str:
    return (
        f"  {side:6} {row['step_seconds']:8.4f} s (predicted "
        f"{row['predicted_seconds']:.4f}, exposed {row['exposed_seconds']:.4f}, "
        f"{row['peak_bytes'] / 1e9:.1f} GB)  {row['layout']}  remat {row['remat']}"
        f"{'  flags' if row['flags'] else ''}"
        f"{_stacked(row['stack'])}"
    )


if __name__ == "__main__":
    main()
