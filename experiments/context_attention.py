"""Over a divided sequence, what do gathered keys and a ring of keys cost as it grows?

Run:     python -m experiments.context_attention [--lengths 2048 4096 8192] [--json]
Takes:   about three minutes of two CPU cores, on eight simulated devices.
Expect:  the same work from both; the ring holds fewer bytes, less of them the longer
         the row, since no device ever has the keys of all.

Forward and backward passes of one layer's attention, causal, in bfloat16. Bytes are the
compiled program's, of one device: temporaries, and what it sends. Seconds are those of
eight devices that share two cores: work, not throughput; they rank nothing.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import scaling_lab as lab

RESULTS = Path(__file__).parent / "results" / "context_attention.json"
SHARDS = 8
CONFIGS = [
    lab.configure("llama", "33m", layout, "cpu:8", batch=1, length=2048)
    for layout in (f"context={SHARDS}", f"context={SHARDS}+ring")
]


def main() -> None:
    import jax

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", SHARDS)
    found = {"rows": [row for n in given.lengths for row in rows(n, given.repeats)]}
    if given.keep:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if given.json else text(found))


def rows(length: int, repeats: int) -> list[dict[str, Any]]:
    """Both mechanisms at one length, taking turns on the clock."""
    import jax

    programs = {}
    for config in CONFIGS:
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
    mechanism = functools.partial(context.MECHANISMS[kind], chunked.KERNEL, "context")

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


if __name__ == "__main__":
    main()
