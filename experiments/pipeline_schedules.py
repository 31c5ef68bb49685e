"""What do schedules of a pipeline cost as microbatches grow, and where does one win?

Run:     python -m experiments.pipeline_schedules [--compile] [--json]
Takes:   half a minute from the committed records; with --compile a minute of two CPU
         cores for each record that is not there. Needs tpu-compile for the TPU's rows.
Expect:  FLOPs as they are counted, within 1 %; GPipe's bytes grow with microbatches,
         those of stages that alternate hardly do; zero bubble spares 1F1B the bubble's
         weight gradients for more bytes. Predicted, stages win three of six points:
         GPipe where the network is slow (Llama 70B on 256 H100 at 100 Gb/s by 25 %, 8B
         on 64 at 50 Gb/s by 7 %), since copies of a stage are summed once a step, and
         interleaved stages for 70B with 2,048 tokens a GPU, by 6 %. 1F1B is ahead of
         no stages at one (100 Gb/s) and of GPipe nowhere; zero bubble nowhere.

Three tables. Eight simulated devices: FLOPs and temporaries of the compiled program of
one device: work, not throughput. What a task costs is read off five rows (GPipe's and
1F1B's with fewest and most microbatches, zero bubble's with most); the other seven are
predicted from it, as the program's ticks are counted, and as the simulator says of
stages that wait for nothing but each other ("waiting"). Then a TPU's compiled steps,
and what `plan` predicts for machines by network.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab import plan
from scaling_lab.cost.points import SCHEDULES
from scaling_lab.hardware import parse_target
from scaling_lab.layouts import schedule_of, stages_of, virtual_of
from scaling_lab.parallel import schedules
from scaling_lab.parallel.schedules import in_step as steps
from scaling_lab.plan import rank, words
from scaling_lab.plan.question import Question
from scaling_lab.record import RunRecord

RESULTS = Path(__file__).parent / "results" / "pipeline_schedules.jsonl"
WORDS = ("", "+interleaved=2", "+1f1b", "+zero_bubble")
MICROBATCHES = (4, 8, 16)
#: The schedule that each of ours is to the simulator.
SIMULATED = {
    "gpipe": "gpipe",
    "interleaved": "interleaved",
    "1f1b": "eager_1f1b",
    "zero_bubble": "eager_zb_h1",
}
SMALL = [
    dataclasses.replace(
        lab.configure(
            "llama",
            "toy",
            f"stage=4,data=2{word}",
            "cpu:8",
            batch=2 * count,
            length=128,
            accumulate=count,
            stack="scan",
        ),
        model=dataclasses.replace(lab.model("llama", "toy"), L=8),
    )
    for word in WORDS
    for count in MICROBATCHES
]
#: Llama 1B's layers, eight of them, on sixteen chips.
LARGE = [
    dataclasses.replace(
        lab.configure(
            "llama",
            "1b",
            layout,
            "tpu-v5e:4x4",
            batch=64,
            length=4096,
            accumulate=8 if "stage" in layout else 1,
            precision="bfloat16",
            remat="full",
        ),
        model=dataclasses.replace(lab.model("llama", "1b"), L=8),
    )
    for layout in ("fsdp=16", *(f"stage=4,fsdp=4{w}" for w in (*WORDS, "+gather_once")))
]
CONFIGS = [*SMALL, *LARGE]
#: Model, target, sequences, length, gigabits per second of one node's network.
MACHINES = [
    ("8b", "h100:8x8", 128, 4096, None),
    ("8b", "h100:8x8", 128, 4096, 50.0),
    ("70b", "h100:32x8", 512, 4096, None),
    ("70b", "h100:32x8", 512, 4096, 100.0),
    ("8b", "tpu-v5p:4x4x4*2", 256, 4096, None),
    ("70b", "h100:32x8", 256, 2048, None),
]


def main() -> None:
    given = kept.arguments(__doc__)
    found = answer(kept.records(CONFIGS, RESULTS, given.compile))
    kept.say(found, text, given.json)


def answer(records: dict[str, RunRecord]) -> dict[str, Any]:
    """The three tables."""
    return {
        "small": small(records),
        "large": large(records),
        "machines": [machine(*row) for row in MACHINES],
    }


def small(records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """FLOPs beside the simulator's, and bytes, by schedule and microbatches."""
    found = {
        (schedule_of(c.layout), c.accumulate): records[c.id].compiled
        for c in SMALL
        if c.id in records
    }
    columns = {key: column for key, column in found.items() if column}
    if len(columns) < len(SMALL):
        return []
    flops = {key: column["flops"] for key, column in columns.items()}
    first, last = MICROBATCHES[0], MICROBATCHES[-1]
    costs, ends = read_off(flops, first, last)
    rows = []
    for config in SMALL:
        kind, count = schedule_of(config.layout), config.accumulate
        sizes = (stages_of(config.layout), count, virtual_of(config.layout), costs)
        ticks, work = in_step(kind, *sizes)
        rows.append(
            {
                "schedule": kind,
                "microbatches": count,
                "ticks": ticks,
                "flops": flops[kind, count],
                "counted_flops": work + ends * count,
                "simulated_flops": simulated(kind, *sizes) + ends * count,
                "useful": count * (costs.of("F") + costs.of("B")) / work,
                "temporary_bytes": columns[kind, count]["temporary_bytes"],
            }
        )
    return rows


def read_off(
    flops: dict[tuple[str, int], float], first: int, last: int
) -> tuple[schedules.Costs, float]:
    """FLOPs of F, I and W of one stage, and of both ends, of one microbatch.

    GPipe's grow by F + I + W and the ends with every microbatch, and 1F1B's by one F
    more, since it makes each stage's results again; Z - 1 of both are wasted, and of
    1F1B's W, which zero bubble spares.
    """
    stages = 4
    grown = {
        kind: (flops[kind, last] - flops[kind, first]) / (last - first)
        for kind in ("gpipe", "1f1b")
    }
    forward = grown["1f1b"] - grown["gpipe"]
    wasted = flops["gpipe", first] - first * grown["gpipe"]
    backward = wasted / (stages - 1) - forward
    weight = (flops["1f1b", last] - flops["zero_bubble", last]) / (stages - 1)
    ends = grown["gpipe"] - forward - backward
    return schedules.Costs(forward, backward - weight, weight), ends


def again(kind: str, costs: schedules.Costs) -> schedules.Costs:
    """The costs of a schedule: stages that alternate do F again before they go back."""
    if kind not in ("1f1b", "zero_bubble"):
        return costs
    more = costs.input_gradient + costs.forward
    return dataclasses.replace(costs, input_gradient=more)


def simulated(
    kind: str, stages: int, count: int, virtual: int, costs: schedules.Costs
) -> float:
    """How long stages take that do each task as soon as they can."""
    made = schedules.make(SIMULATED[kind], stages, count, virtual)
    return schedules.simulate(made, again(kind, costs)).seconds


def in_step(
    kind: str, stages: int, count: int, virtual: int, costs: schedules.Costs
) -> tuple[int, float]:
    """Ticks of our program, and what its stages do in them, for nothing or not."""
    costs = again(kind, costs)
    if kind not in ("1f1b", "zero_bubble"):
        each = count * virtual + stages - 1
        return 2 * each, each * (costs.of("F") + costs.of("B")) / virtual
    apart = kind == "zero_bubble"
    ticks = range(count + 2 * (stages - 1))
    doing = "".join(steps.does(t, stages, count, apart) for t in ticks)
    return len(ticks), sum(map(costs.of, doing))


def large(records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """Compiled steps of a TPU, beside what was predicted."""
    rows = []
    for config in LARGE:
        column = (records[config.id].compiled or {}) if config.id in records else {}
        predicted = (records[config.id].predicted or {}) if config.id in records else {}
        rows.append(
            {
                "layout": config.layout.name,
                "step_seconds": column.get("step_seconds"),
                "predicted_seconds": predicted.get("step_seconds"),
                "temporary_bytes": column.get("temporary_bytes"),
                "peak_bytes": column.get("peak_bytes"),
                "flops": column.get("flops"),
            }
        )
    return rows


def machine(
    size: str, target: str, batch: int, length: int, gbps: float | None
) -> dict[str, Any]:
    """The fastest layout without stages, and the fastest of every schedule."""
    asked = Question(
        plan.of_config(lab.model("llama", size)),
        parse_target(target),
        batch=batch,
        length=length,
        node_gbps=gbps,
    )
    ranked = rank.rank(asked)
    table = ranked.candidates.table
    seconds = np.where(ranked.fits, ranked.seconds, np.inf)
    kinds = {"none": table["stage"] == 1}
    for code, name in enumerate(SCHEDULES):
        kinds[name] = (table["stage"] > 1) & (table["schedule"] == code)
    best = {}
    for name, mine in kinds.items():
        index = np.flatnonzero(mine)[np.argmin(seconds[mine])]
        fits = np.isfinite(seconds[index])
        best[name] = {
            "seconds": float(seconds[index]) if fits else None,
            "layout": words.layout(ranked, index) if fits else None,
        }
    network = "the chip's" if gbps is None else f"{gbps:g} Gb/s"
    head = {"model": size, "target": target, "network": network, "batch": batch}
    return head | {"best": best}


def text(found: dict[str, Any]) -> str:
    """The tables to read."""
    lines = ["work, not throughput: one of eight simulated devices, MFLOP and MiB"]
    lines.append(
        "schedule      M  ticks   FLOPs  counted  waiting  useful  temporaries"
    )
    for row in found["small"]:
        lines.append(
            f"{row['schedule']:11} {row['microbatches']:3} {row['ticks']:6} "
            f"{row['flops'] / 1e6:7.1f} {row['counted_flops'] / 1e6:8.1f} "
            f"{row['simulated_flops'] / 1e6:8.1f} {row['useful']:7.0%} "
            f"{row['temporary_bytes'] / 2**20:12.2f}"
        )
    lines.append("\ncompiled for tpu-v5e:4x4, eight layers of Llama 1B; GB")
    for row in found["large"]:
        if row["step_seconds"] is None:
            lines.append(f"{row['layout']:28} not compiled")
            continue
        lines.append(
            f"{row['layout']:28} {row['step_seconds']:.3f} s, predicted "
            f"{row['predicted_seconds']:.3f} s, temporaries "
            f"{row['temporary_bytes'] / 1e9:.2f}"
        )
    lines.append("\npredicted: seconds of a step, the fastest layout of each kind")
    for row in found["machines"]:
        lines.append(
            f"{row['model']} {row['target']}, {row['batch']} sequences, network "
            f"{row['network']}"
        )
        for name, one in row["best"].items():
            said = "does not fit" if one["seconds"] is None else f"{one['seconds']:.2f}"
            lines.append(f"  {name:12} {said:>12}  {one['layout'] or ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
