"""What does each way to bring tokens and experts together cost as experts get many?

Run:     python -m experiments.expert_dispatch [--experts 8 16 32 64] [--json] [--keep]
Takes:   about a minute of two CPU cores, on eight simulated devices.
Expect:  the oracle's FLOPs rise with E and those of places do not (rows that are sorted
         are multiplied in loops as long as the data says, which no compiler counts); an
         exchange of rows and a ring of tokens send as many bytes at every E, where
         gathered weights grow with it.

Forward and backward passes of one layer, two experts a token, on an axis of eight.
Every expert has the same width, so what a token costs stays. Bytes and FLOPs are the
compiled program's, of one device; what it sends is counted by the size of the results.
Work is seconds over the sorted way's in the same run: eight devices share two cores,
and XLA:CPU has no ragged exchange, so rows go in padded boxes. It is work, not
throughput, and ranks nothing.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import scaling_lab as lab

RESULTS = Path(__file__).parent / "results" / "expert_dispatch.json"
SHARDS = 8
CONFIGS = [
    lab.configure("mixtral", "toy", f"expert={SHARDS}", "cpu:8", batch=8, length=128)
]
COUNTED = ("dense", "capacity")
KINDS = ("sorted", "dense", "capacity", "ring_of_experts", "all_to_all")


def main() -> None:
    from scaling_lab.compile import cpu

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    given = parser.parse_args()
    cpu.simulate(SHARDS)
    rows = [row for count in given.experts for row in of(count, given.repeats)]
    found = {"label": "work, not throughput", "rows": rows}
    if given.keep:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if given.json else text(found))


def of(experts: int, repeats: int) -> list[dict[str, Any]]:
    """Every kind at one number of experts, taking turns on the clock."""
    import jax

    from scaling_lab.compile import describe

    programs = {kind: program(kind, experts) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, (compiled, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds[kind].append(time.perf_counter() - start)
    work = {kind: statistics.median(each) for kind, each in seconds.items()}
    rows = []
    for kind, (compiled, _) in programs.items():
        column = describe(compiled, {"expert": SHARDS}, 1.0, None, f"cpu:{SHARDS}")
        sent = sum(row["bytes"] for row in column["collectives"])
        rows.append(
            {
                "experts": experts,
                "mechanism": kind,
                # Sorted rows are multiplied in loops as long as the data says.
                "flops": column["flops"] if kind in COUNTED else None,
                "temporary_bytes": column["temporary_bytes"],
                "collective_bytes": sent,
                "work_over_sorted": work[kind] / work[KINDS[0]],
            }
        )
    return rows


def program(kind: str, experts: int) -> tuple[Any, Any]:
    """A layer and its gradients, compiled and run once, and what it takes."""
    import jax
    import jax.numpy as jnp

    from scaling_lab.layouts import Placement, make_mesh
    from scaling_lab.models.ops import swiglu

    config = CONFIGS[0]
    layout = dataclasses.replace(config.layout, bind={"experts": kind})
    place = Placement(layout, make_mesh(layout))
    width, inner = config.model.D, config.model.F
    shapes = {
        "h_BTD": (config.batch, config.length, width),
        "router_DE": (width, experts),
        "gate_EDF": (experts, width, inner),
        "up_EDF": (experts, width, inner),
        "down_EFD": (experts, inner, width),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = {
        name: jax.device_put(
            jax.random.normal(key, shape) * 0.05,
            place.sharding(
                "acts" if name == "h_BTD" else "params", name.rpartition("_")[2], name
            ),
        )
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def loss(arrays: dict[str, Any]) -> Any:
        out_BTD, aux = place.experts(
            arrays["h_BTD"],
            arrays["router_DE"],
            {name: arrays[name] for name in ("gate_EDF", "up_EDF", "down_EFD")},
            swiglu,
            routing=config.model.routing,
            name="ffn/experts",
        )
        return jnp.sum(jnp.square(out_BTD)) + aux["loss"]

    like = jax.tree.map(lambda array: array.sharding, arrays)
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, like))
    compiled = step.lower(arrays).compile()
    jax.block_until_ready(compiled(arrays))
    return compiled, (arrays,)


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = [
        f"{'experts':>7} {'mechanism':16} {'MFLOPs':>8} {'temporaries':>12} "
        f"{'sent':>10} {'work':>6}   ({found['label']})"
    ]
    for row in found["rows"]:
        work = row["work_over_sorted"]
        work = "-" if work is None else f"{work:.2f}"
        flops = "-" if row["flops"] is None else f"{row['flops'] / 1e6:.0f}"
        lines.append(
            f"{row['experts']:7} {row['mechanism']:16} {flops:>8} "
            f"{row['temporary_bytes'] / 2**20:8.2f} MiB "
            f"{row['collective_bytes'] / 2**20:6.2f} MiB {work:>6}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
