"""Does every family train the same under every layout and mechanism as on one device?

Run:     python -m experiments.layout_equivalence [--run] [--most 20] [--json]
Takes:   a second from results/; with --run about ten seconds of one CPU core a case for
         what is not there, on eight simulated devices.
Expect:  losses within 1e-5, gradients within 1e-4 and what three steps change within
         1e-3 of one device's, relatively, in float32.

The tests train a covering array of these; this is all of them, a row a case, each kept
as soon as it is there. A gradient that is zero on paper, and below a millionth of the
whole in practice, is rounding on every machine and left out.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

import scaling_lab as lab
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.parallel.verbs import Routing

RESULTS = Path(__file__).parent / "results" / "layout_equivalence.jsonl"
BOUNDS = {"loss": 1e-5, "gradient": 1e-4, "update": 1e-3}
DENSE = ("llama", "gpt2", "qwen3", "gemma3")
ROUTED = ("mixtral", "qwen3_moe", "deepseek")
#: For every family: layout, remat, microbatches.
LAYOUTS = [
    ("data=8", "none", 1),
    ("data=8+zero1", "none", 1),
    ("data=8+zero2", "full", 4),
    ("fsdp=8", "full", 4),
    ("fsdp=8+gather_once", "none", 1),
    ("data=2,fsdp=4", "save:attention/attend", 1),
    ("data=2,tensor=4", "none", 1),
    ("fsdp=4,tensor=2", "full", 1),
    ("fsdp=4,tensor=2+sequence", "none", 4),
    ("data=2,context=4", "none", 1),
    ("fsdp=2,context=4+ring", "full", 1),
    ("fsdp=2,context=4+ulysses", "none", 4),
    ("fsdp=2,context=2,tensor=2+sequence+ring", "none", 1),
    ("stage=2,fsdp=4", "full", 4),
    ("stage=2,data=2,tensor=2+sequence", "none", 4),
    ("stage=2,fsdp=2,context=2+ring", "full", 4),
    ("stage=2,fsdp=4+interleaved=2", "full", 4),
]
#: Where most layers are of one kind.
ALIKE = ("llama", "gpt2", "qwen3", "mixtral", "qwen3_moe")
ALTERNATING = [
    ("stage=2,fsdp=4+1f1b", "full", 4),
    ("stage=2,fsdp=4+zero_bubble", "full", 4),
]
#: For those that have experts.
OF_EXPERTS = [
    ("expert=8", "none", 1),
    ("expert=4,fsdp=2", "full", 4),
    ("expert=4,fsdp=2+ring_of_experts", "none", 1),
    ("expert=4,fsdp=2+capacity", "none", 1),
    ("fsdp=8+capacity", "full", 4),
    ("expert=2,fsdp=2,tensor=2", "none", 1),
    ("expert=2,fsdp=2,context=2+ring", "none", 1),
    ("stage=2,expert=2,fsdp=2", "full", 4),
]
#: Divisible wherever a layout divides, and nothing more.
TINY = {"L": 4, "D": 64, "N": 8, "K": 4, "H": 8, "F": 128, "V": 256, "E": 8}
B1 = 0.9
#: A large epsilon keeps AdamW from magnifying the rounding of gradients near zero.
ADAMW = OptimizerConfig(b1=B1, epsilon=1e-4, learning_rate=1e-2, warmup=1, clip=None)


def model_of(family: str) -> Any:
    """The smallest of a family: windows cut a row, and capacity drops tokens."""
    toy = lab.model(family, "toy")
    sizes = TINY if toy.K < toy.N else TINY | {"K": TINY["N"]}
    changes = {letter: n for letter, n in sizes.items() if hasattr(toy, letter)}
    if family == "gemma3":
        changes |= {"window": 12}
    if family == "deepseek":
        changes |= {"L": 8, "dense": 4}
    elif family in ROUTED:
        changes |= {"routing": Routing(top_k=2, balance=0.02, z=0.01)}
    return dataclasses.replace(toy, **changes)


def config_of(family: str, layout: str, remat: str, parts: int) -> lab.RunConfig:
    """A case: three steps of 32 sequences of 32 tokens."""
    return dataclasses.replace(
        lab.configure(family, "toy", layout, "cpu:8", steps=3),
        model=model_of(family),
        optimizer=ADAMW,
        **{"batch": 32, "length": 32, "remat": remat, "accumulate": parts},
    )


def cases() -> list[lab.RunConfig]:
    """All of them, layout by layout, so that what is there early is of every family."""
    found = [(family, *case) for case in LAYOUTS for family in DENSE + ROUTED]
    found += [(family, *case) for case in ALTERNATING for family in ALIKE]
    found += [(family, *case) for case in OF_EXPERTS for family in ROUTED]
    return [config_of(*case) for case in found]


CONFIGS = cases()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="store_true", help="what is not there")
    parser.add_argument("--most", type=int, default=len(CONFIGS), help="cases of it")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = kept()
    missing = [config for config in CONFIGS if config.id not in found]
    for config in missing[: given.most] if given.run else ():
        found[config.id] = row = compared(config)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    rows = [found[config.id] for config in CONFIGS if config.id in found]
    answer = {"cases": len(CONFIGS), "rows": rows}
    print(json.dumps(answer, indent=1) if given.json else text(answer))


def kept() -> dict[str, dict[str, Any]]:
    """The rows that are there, by the config's id."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def compared(config: lab.RunConfig) -> dict[str, Any]:
    """One case beside one device: the largest relative differences, or what failed."""
    import jax

    from scaling_lab.compile import cpu

    cpu.simulate(8)
    jax.config.update("jax_disable_most_optimizations", True)
    row: dict[str, Any] = {
        "id": config.id,
        "family": config.family,
        "layout": config.layout.name,
        "remat": config.remat,
        "accumulate": config.accumulate,
        "status": "ok",
    }
    bound = config.layout.mechanism("experts", "")
    bind = {"experts": bound} if bound == "capacity" else None
    parts = config.accumulate if config.family in ROUTED else 1
    try:
        wanted = measure(model_of(config.family), parts, json.dumps(bind))
        row |= differences(three_steps(config), wanted)
    except Exception as error:  # a failure is a row too
        row |= {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:400]}
    jax.clear_caches()
    return row


@functools.lru_cache(maxsize=8)
def measure(model: Any, parts: int, bind: str) -> Any:
    """Three steps on one device; `bind` is a layout's, as JSON."""
    config = config_of(
        type(model).__module__.rpartition(".")[2], "data=1", "none", parts
    )
    layout = lab.Layout({}, bind=json.loads(bind))
    return three_steps(dataclasses.replace(config, layout=layout, stack="scan"))


def three_steps(config: lab.RunConfig) -> tuple[list[float], Any, Any]:
    """Losses; gradients of the first step; what all steps change; on the host.

    AdamW's first moment after a step is ``(1 - b1)`` times the gradient.
    """
    import jax
    import optax

    from scaling_lab import dims, train

    program = train.make_program(config)
    state = program.init()
    before = jax.device_get(dims.leaves(state.params))
    losses, gradients = [], None
    for seed in range(3):
        state, metrics = program.step(state, program.put(batch_of(config, seed)))
        losses.append(float(metrics["loss"]))
        if gradients is None:
            moments = dims.leaves(optax.tree_utils.tree_get(state.optimizer, "mu"))
            gradients = {k: m / (1 - B1) for k, m in jax.device_get(moments).items()}
    after = jax.device_get(dims.leaves(state.params))
    return losses, gradients, {path: after[path] - before[path] for path in after}


def batch_of(config: lab.RunConfig, seed: int) -> dict[str, np.ndarray]:
    """Random tokens in two to four documents a row; none is told to guess across."""
    random = np.random.default_rng(seed)
    shape = (config.batch, config.length)
    tokens = random.integers(0, config.model.V, (shape[0], shape[1] + 1))
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    targets = tokens[:, 1:].astype(np.int32)
    for row in range(config.batch):
        borders = random.choice(np.arange(1, shape[1]), 1 + row % 3, replace=False)
        for number, piece in enumerate(np.split(np.arange(shape[1]), np.sort(borders))):
            segments[row, piece] = number
            positions[row, piece] = np.arange(len(piece))
            targets[row, piece[-1]] = -1
    return {
        "tokens_BT": tokens[:, :-1].astype(np.int32),
        "targets_BT": targets,
        "positions_BT": positions,
        "segments_BT": segments,
    }


def differences(found: Any, wanted: Any) -> dict[str, Any]:
    """The largest relative differences, and of which tensors."""
    losses = [abs(a - b) / abs(b) for a, b in zip(found[0], wanted[0], strict=True)]
    row: dict[str, Any] = {"loss": max(losses)}
    for name, left, right in zip(
        ("gradient", "update"), found[1:], wanted[1:], strict=True
    ):
        norms = {path: float(np.linalg.norm(array)) for path, array in right.items()}
        least = 1e-6 * float(np.linalg.norm(list(norms.values())))
        apart = {
            path: float(np.linalg.norm(left[path] - right[path])) / norm
            for path, norm in norms.items()
            if norm > least
        }
        row[name] = max(apart.values())
        row[f"{name}_of"] = max(apart, key=lambda path: apart[path])
    return row


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read; an exclamation mark is over a bound."""
    lines = [f"{'layout':44} {'family':10} {'loss':>8} {'gradient':>9} {'update':>8}"]
    worst = dict.fromkeys(BOUNDS, 0.0)
    for row in found["rows"]:
        start = f"{row['layout']:44} {row['family']:10} "
        if row["status"] != "ok":
            lines.append(f"{start}{row['status']}: {row['reason']}")
            continue
        over = any(row[name] > bound for name, bound in BOUNDS.items())
        worst = {name: max(worst[name], row[name]) for name in worst}
        cells = f"{row['loss']:8.1e} {row['gradient']:9.1e} {row['update']:8.1e}"
        lines.append(f"{start}{cells}{' !' if over else ''}")
    largest = ", ".join(f"{name} {size:.1e}" for name, size in worst.items())
    lines.append(f"{len(found['rows'])} of {found['cases']} cases; largest: {largest}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
