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
  under the memory; on the fastest of them the chip's flags for overlap, and on a GPU
  layers written out, each kept where it is faster.

Each side is offered the few that are predicted fastest and the compiler decides. Under
each point stands what gave how much: one thing after the other, up to the one that won.
"""

import argparse
import dataclasses
import json
from typing import Any

import numpy as np

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab import models, plan
from scaling_lab.cost.memory import memory
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.hardware import parse_target
from scaling_lab.plan import candidates, refine

RESULTS = kept.RESULTS / "the_thirty_percent.jsonl"
#: family, size, targets. A chip takes two sequences of 4096, or one of 2048.
MODELS = (
    ("llama", "8b", ("tpu-v5p:4x4x4", "h100:8x8")),
    ("llama", "70b", ("tpu-v5p:4x8x8", "h100:32x8")),
    ("mixtral", "8x7b", ("tpu-v5p:4x4x8", "h100:16x8")),
)
LOADS = {"8k": (2, 4096), "2k": (1, 2048)}
BARS = {"8k": (1.20, 1.00), "2k": (1.30, 1.10)}
#: What the compiler is asked about: policies of each tuned layout; of the planner's
#: the best layouts, no two over the same axes, and policies of each with as many
#: microbatches.
TUNED, LAYOUTS, POLICIES = 2, 3, 2
NO_PIPELINE = ("data", "expert", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class Point:
    """A model on a machine under a load."""

    family: str
    size: str
    target: str
    load: str

    @property
    def question(self) -> plan.Question:
        """What the planner is asked."""
        machine = parse_target(self.target)
        sequences, length = LOADS[self.load]
        batch = sequences * (machine.chips or 1)
        shape = plan.of_config(models.size(self.family, self.size))
        return plan.Question(shape, machine, batch, length, axes=NO_PIPELINE)

    def config(self, layout: str, remat: str, **more: Any) -> lab.RunConfig:
        """A run at this point."""
        question = self.question
        words = {"batch": question.batch, "length": question.length, "remat": remat}
        return lab.configure(
            self.family, self.size, layout, self.target, **words, **more
        )


POINTS = [
    Point(family, size, target, load)
    for family, size, targets in MODELS
    for target in targets
    for load in LOADS
]


def naive(point: Point) -> lab.RunConfig:
    """FSDP over all devices, everything made again."""
    return point.config(f"fsdp={point.question.devices}", "full")


CONFIGS = [naive(point) for point in POINTS]


def tuned(point: Point) -> list[lab.RunConfig]:
    """FSDP, and HSDP with a replica a node or as large, each with its best policies."""
    question = point.question
    devices = question.devices
    chip = question.target.chip
    apart = 4 if chip.torus_dims else devices // chip.scale_up_chips
    layouts = [f"fsdp={devices}"]
    layouts += [f"data={n},fsdp={devices // n}" for n in (apart, 2)]
    found = []
    for layout in layouts:
        offered = [
            point.config(layout, candidates.policy_of(question, code), accumulate=parts)
            for code in range(len(candidates.POLICIES))
            for parts in (1, 2)
            if question.batch // devices % parts == 0
        ]
        found += _predicted_best(question, offered)[:TUNED]
    return found


def _predicted_best(
    question: plan.Question, configs: list[lab.RunConfig]
) -> list[lab.RunConfig]:
    """Those that fit, the predicted fastest first; of one policy the best alone."""
    points = points_of(configs)
    held = memory(points).hbm_bytes
    seconds = predict(points).step_seconds
    order = [i for i in np.argsort(seconds) if held[i] <= question.limit_bytes]
    best: dict[str, lab.RunConfig] = {}
    for i in order:
        best.setdefault(configs[i].remat, configs[i])
    return list(best.values())


def ours(point: Point) -> list[lab.RunConfig]:
    """The planner's layouts, no two over the same axes, with their best policies."""
    question = point.question
    plans = plan.plan(question, top=10_000)
    kinds: dict[tuple[str, ...], plan.Choice] = {}
    for choice in plans.choices:
        if choice.trained:
            kinds.setdefault(tuple(choice.mesh), choice)
    return [
        dataclasses.replace(
            plan.config_of(question, choice),
            remat=each.remat,
            accumulate=each.microbatches,
        )
        for choice in list(kinds.values())[:LAYOUTS]
        for each in refine.policies(plans, choice, POLICIES)
    ]


def changes(point: Point) -> dict[str, dict[str, Any]]:
    """What is tried on the best of them, one after the other, and kept if it is faster.

    Layers written out spare the copies of a loop's results. A TPU's compiler takes too
    long over them.
    """
    chip = point.question.target.chip
    found = {"flags": {"xla_flags": chip.flags.get("overlap", "")}}
    if chip.compiler == "gpu":
        found["layers written out"] = {"stack": "unroll"}
    return found


def chosen(point: Point, compiles: bool) -> list[lab.RunConfig]:
    """All that the planner had compiled, in the order in which it asked."""
    offered = ours(point)
    for change in changes(point).values():
        best = fastest(offered, compiles)
        if best is not None:
            base = next(config for config in offered if config.id == best["id"])
            offered.append(dataclasses.replace(base, **change))
    return offered


def steps(config: lab.RunConfig, first: lab.RunConfig) -> dict[str, lab.RunConfig]:
    """From naive to ours, one thing after the other."""
    plain = dataclasses.replace(config, xla_flags="", stack=first.stack)
    return {
        "naive": first,
        "policy": dataclasses.replace(first, remat=config.remat),
        "layout": plain,
        "flags": dataclasses.replace(config, stack=first.stack),
        "layers written out": config,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="words of a point's line")
    parser.add_argument("--compile", action="store_true", help="what is not there")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    points = [p for p in POINTS if all(word in said(p) for word in given.only)]
    found = {said(point): answer(point, given.compile) for point in points}
    print(json.dumps(found, indent=1) if given.json else text(found))


def said(point: Point) -> str:
    """How a point is called: ``llama-8b h100:8x8 8k``."""
    return f"{point.family}-{point.size} {point.target} {point.load}"


def answer(point: Point, compiles: bool) -> dict[str, Any]:
    """The three sides' best compiled steps, their ratios and the ablation."""
    first = naive(point)
    sides = {"naive": [first], "tuned": tuned(point), "ours": chosen(point, compiles)}
    best = {name: fastest(configs, compiles) for name, configs in sides.items()}
    found: dict[str, Any] = {name: side for name, side in best.items() if side}
    if any(side is None for side in best.values()):
        missing = [name for name, side in best.items() if side is None]
        return found | {"missing": f"no compiled step: {', '.join(missing)}"}
    seconds = {name: side["step_seconds"] for name, side in best.items() if side}
    for name, bar in zip(("naive", "tuned"), BARS[point.load], strict=True):
        found[f"over_{name}"] = seconds[name] / seconds["ours"]
        found[f"{name}_met"] = found[f"over_{name}"] >= bar
    won = next(c for c in sides["ours"] if c.id == found["ours"]["id"])
    found["ablation"] = {
        name: (fastest([config], compiles) or {}).get("step_seconds")
        for name, config in steps(won, first).items()
    }
    return found


def fastest(configs: list[lab.RunConfig], compiles: bool) -> dict[str, Any] | None:
    """The fastest compiled step that fits; ``None`` where nothing is compiled."""
    records = kept.records(configs, RESULTS, compiles=compiles)
    rows = []
    for config in configs:
        record = records.get(config.id)
        column = (record.compiled if record and record.status == "ok" else None) or {}
        if column.get("fits"):
            predicted = (record.predicted or {}) if record else {}
            rows.append(
                {
                    "id": config.id,
                    "layout": config.layout.name,
                    "remat": config.remat,
                    "microbatches": config.accumulate,
                    "flags": bool(config.xla_flags),
                    "stack": config.stack,
                    "step_seconds": column["step_seconds"],
                    "predicted_seconds": predicted.get("step_seconds"),
                    "exposed_seconds": column["exposed_seconds"],
                    "peak_bytes": column["peak_bytes"],
                }
            )
    return min(rows, key=lambda row: row["step_seconds"], default=None)


def text(found: dict[str, dict[str, Any]]) -> str:
    """One line a point, then how each side is laid out and what gave how much."""
    lines = []
    for name, row in found.items():
        if "missing" in row:
            lines.append(f"{name} missing: {row['missing']}")
            continue
        misses = [side for side in ("naive", "tuned") if not row[f"{side}_met"]]
        short = f"   below its bar: {', '.join(misses)}" if misses else ""
        ratios = f"naive={row['over_naive']:.2f}x tuned={row['over_tuned']:.2f}x"
        lines.append(f"{name} {ratios}{short}")
    for name, row in found.items():
        lines.append(f"\n{name}")
        for side in ("naive", "tuned", "ours"):
            if side in row:
                lines.append(_line(side, row[side]))
        given = row.get("ablation", {})
        said = [f"{part} {value:.4g} s" for part, value in given.items() if value]
        if said:
            lines.append("  one after the other: " + ", ".join(said))
    return "\n".join(lines)


def _line(side: str, row: dict[str, Any]) -> str:
    return (
        f"  {side:6} {row['step_seconds']:8.4f} s (predicted "
        f"{row['predicted_seconds']:.4f}, exposed {row['exposed_seconds']:.4f}, "
        f"{row['peak_bytes'] / 1e9:.1f} GB)  {row['layout']}  remat {row['remat']}"
        f"{'  flags' if row['flags'] else ''}"
        f"{'  layers written out' if row['stack'] == 'unroll' else ''}"
    )


if __name__ == "__main__":
    main()
