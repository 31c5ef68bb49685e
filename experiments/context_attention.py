"""Over a divided sequence, what do gathered keys, a ring and exchanged heads cost?

Run:     python -m experiments.context_attention [--lengths 2048 4096 8192] [--json]
         python -m experiments.context_attention --compiled [--compile] [--json]
Takes:   about five minutes of two CPU cores, on eight simulated devices; with
         --compiled seconds, and with --compile too some minutes a step that is not in
         results/ (extras tpu-compile and gpu-compile).
Expect:  simulated, about the same work from all; the ring holds fewest bytes, less of
         them the longer the row, since no device ever has the keys of all. Compiled,
         all three are within a few percent on TPUs; on GPUs exchanged heads (Ulysses)
         are fastest, since whole rows have a better kernel than parts: cuDNN's.

Simulated are forward and backward passes of one layer's attention, causal, in bfloat16;
seconds are those of eight devices that share two cores: work, not throughput; they rank
nothing. Compiled are whole steps of Llama 8B on 64 chips with rows of 32768 over eight
of them: seconds of attention and of the step, what is sent over context, and
temporaries, of one device. Our own kernel on GPUs is priced by what FlashAttention-2
reaches there (`compile.price`), not by a clock.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import scaling_lab as lab
from experiments import _compiled

RESULTS = Path(__file__).parent / "results" / "context_attention.json"
SHARDS = 8
WORDS = ("", "+ring", "+ulysses")
SIMULATED = [
    lab.configure("llama", "33m", f"context={SHARDS}{word}", "cpu:8", length=2048)
    for word in WORDS
]
QKV = "attention/query,attention/key,attention/value,attention/attend"
COMPILED = [
    lab.configure(
        "llama",
        "8b",
        f"fsdp=8,context={SHARDS}{word}",
        target,
        batch=8,
        length=32_768,
        remat=f"save:{QKV}",
    )
    for target in ("tpu-v5p:4x4x4", "h100:8x8")
    for word in WORDS
]
CONFIGS = [*SIMULATED, *COMPILED]


def main() -> None:
    from scaling_lab.compile import cpu

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    parser.add_argument("--compiled", action="store_true", help="whole steps instead")
    parser.add_argument("--compile", action="store_true", help="what is not there")
    given = parser.parse_args()
    if given.compiled or given.compile:
        _compiled.say(compiled(given.compile), compiled_text, given.json)
        return
    cpu.simulate(SHARDS)
    found = {"rows": [row for n in given.lengths for row in rows(n, given.repeats)]}
    if given.keep:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if given.json else text(found))


def rows(length: int, repeats: int) -> list[dict[str, Any]]:
    """Every mechanism at one length, taking turns on the clock."""
    import jax

    programs = {}
    for config in SIMULATED:
        kind = config.layout.mechanism("attend", "gather")
        programs[kind] = program(config, kind, length)
    seconds: dict[str, list[float]] = {kind: [] for kind in programs}
    for _ in range(repeats):
        for kind, (compiled, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds[kind].append(time.perf_counter() - start)
    found = []
    for kind, (compiled, _) in programs.items():
        memory = compiled.memory_analysis()
        found.append(
            {
                "length": length,
                "mechanism": kind,
                "temporary_bytes": int(memory.temp_size_in_bytes),
                "work_seconds": statistics.median(seconds[kind]),
            }
        )
    return found


def program(config: lab.RunConfig, kind: str, length: int) -> tuple[Any, Any]:
    """Attention and its gradients, compiled, and what it takes."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from scaling_lab.parallel import attention, chunked, context, masks

    mesh = jax.make_mesh((SHARDS,), ("context",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(None, "context")
    kernels = context.Kernels(chunked.attend, chunked.KERNEL)
    mechanism = context.spread(kind, kernels, "context")

    def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
        arrays = (q, k, v)
        rows, heads = (None, "context"), (None, None)
        return attention.by_heads(mechanism, arrays, mask, mesh, rows, heads)

    order_T = context.zigzag(length, SHARDS)
    model, here = config.model, NamedSharding(mesh, spec)
    at_BT = jax.device_put(jnp.asarray(order_T)[None], here)
    batch = {"positions_BT": at_BT, "segments_BT": jnp.zeros_like(at_BT)}
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (model.N, model.K, model.K, model.N)
    arrays = [
        jax.device_put(
            jax.random.normal(key, (1, length, count, model.H), jnp.bfloat16), here
        )
        for key, count in zip(keys, heads, strict=True)
    ]

    def both(mask: Any, q: Any, k: Any, v: Any, d: Any) -> Any:
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
        return out, back(d)

    arguments = (masks.causal_mask(batch), *arrays)
    compiled = jax.jit(both).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    return compiled, arguments


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = [f"{'length':>7} {'mechanism':10} {'temporaries':>12} {'work':>8}"]
    for row in found["rows"]:
        size = row["temporary_bytes"] / 2**20
        lines.append(
            f"{row['length']:7} {row['mechanism']:10} {size:8.1f} MiB "
            f"{row['work_seconds']:7.2f}s"
        )
    return "\n".join(lines)


def compiled(compiles: bool) -> dict[str, Any]:
    """Every mechanism in a whole step, from the compilers of two machines."""
    path = RESULTS.with_suffix(".jsonl")
    known = _compiled.records(COMPILED, path, compiles)
    found = []
    for config in COMPILED:
        column = known[config.id].compiled if config.id in known else None
        if column is None:
            continue
        axes = column["by_axis"]
        found.append(
            {
                "target": config.target,
                "mechanism": config.layout.mechanism("attend", "gather"),
                "step_seconds": column["step_seconds"],
                "attend_seconds": column["by_verb"]["attention/attend"]["seconds"],
                "exposed_seconds": column["exposed_seconds"],
                "context_bytes": axes["context"]["collective_bytes"],
                "temporary_bytes": column["temporary_bytes"],
            }
        )
    return {"rows": found}


def compiled_text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    head = ("target", "mechanism", "step", "attention", "exposed", "sent", "held")
    lines = ["{:14} {:9} {:>8} {:>10} {:>9} {:>9} {:>9}".format(*head)]
    for row in found["rows"]:
        lines.append(
            f"{row['target']:14} {row['mechanism']:9} {row['step_seconds']:7.2f}s "
            f"{row['attend_seconds']:9.2f}s {row['exposed_seconds']:8.2f}s "
            f"{row['context_bytes'] / 1e9:6.1f} GB "
            f"{row['temporary_bytes'] / 1e9:6.1f} GB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
