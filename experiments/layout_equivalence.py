"""Does every family train the same under every layout and mechanism as on one device?

Run:     python -m experiments.layout_equivalence [--run] [--most 20] [--json]
Takes:   a second from results/; with --run about ten seconds of one CPU core a case for
         what is not there, on eight simulated devices.
Expect:  losses within 1e-5, gradients within 1e-4 and what three steps change within
         1e-3 of one device's, relatively, in float32; in other arithmetic what
         `_equivalence.MODES` says, of one device that does the same, or twice what that
         arithmetic takes one device from float32.

The tests train a covering array of more mechanisms; this is all of these, a row a case,
each kept as soon as it is there. A gradient that is zero on paper, and below a
millionth of the whole in practice (a ten-thousandth, where sums round to 16 bits), is
rounding on every machine and left out. Moments of few bits tell no gradients: then it
is their norms that are compared.

A small sum of large numbers of both signs, as the gradient of a query's norm, is made
of rounding in few bits, which no bound for all tensors allows for. Where a row is past
its bound, one device is asked how far its arithmetic takes that tensor from float32:
two that are as far from the truth are no further than twice that from each other.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import scaling_lab as lab
from experiments._equivalence import B1, MODES, Case, Mode, cases, config_of, model_of

FOLDER = Path(__file__).parent / "results"
RESULTS = FOLDER / "layout_equivalence.jsonl"
ROUNDING = FOLDER / "layout_equivalence_rounding.jsonl"
NAMES = ("loss", "gradient", "update")
CASES = {config_of(case).id: case for case in cases()}
CONFIGS = [config_of(case) for case in CASES.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="store_true", help="what is not there")
    parser.add_argument("--most", type=int, default=len(CONFIGS), help="cases of it")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found, rounding = kept(), kept(ROUNDING)
    missing = [(i, case) for i, case in CASES.items() if i not in found]
    for number, case in missing[: given.most] if given.run else ():
        found[number] = keep(RESULTS, {"id": number, **compared(case)})
    rows = [found[config.id] for config in CONFIGS if config.id in found]
    for row in filter(beyond, rows) if given.run else ():
        name = alone(case := case_of(row))
        if name not in rounding:
            rounding[name] = keep(ROUNDING, {"id": name, **rounds(case)})
    rows = [{**row, "over": over(row, rounding)} for row in rows]
    answer = {"cases": len(CONFIGS), "rows": rows}
    print(json.dumps(answer, indent=1) if given.json else text(answer))


def kept(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The rows that are there, by id: the config's, or what `alone` says."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def keep(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def compared(case: Case) -> dict[str, Any]:
    """One case beside one device: the largest relative differences, or what failed."""
    import jax

    simulated()
    row: dict[str, Any] = {**case._asdict(), "status": "ok"}
    try:
        wanted = measure(
            model_of(case), case.parts, "+capacity" in case.layout, case.mode
        )
        row |= differences(three_steps(config_of(case)), wanted, MODES[case.mode])
    except Exception as error:  # a failure is a row too
        row |= {"status": "crashed", "reason": f"{type(error).__name__}: {error}"[:400]}
    jax.clear_caches()
    return row


def simulated() -> None:
    """Eight devices, and programs that are compiled quickly."""
    import jax

    from scaling_lab.compile import cpu

    cpu.simulate(8)
    jax.config.update("jax_disable_most_optimizations", True)


@functools.lru_cache(maxsize=8)
def measure(model: Any, parts: int, drops: bool, mode: str) -> Any:
    """Three steps on one device, told to drop what a layout drops."""
    family = type(model).__module__.rpartition(".")[2]
    config = config_of(Case(family, "data=1", "none", parts, mode=mode))
    layout = lab.Layout({}, bind={"experts": "capacity"} if drops else None)
    alone = {"model": model, "layout": layout, "stack": "scan", "reduce": None}
    return three_steps(dataclasses.replace(config, **alone))


def three_steps(config: lab.RunConfig) -> tuple[list[float], Any, Any]:
    """Losses; gradients of the first step; what all steps change; on the host.

    AdamW's first moment after a step is ``(1 - b1)`` times the gradient; where it has
    few bits, a gradient's norm stands for it.
    """
    import jax
    import optax

    from scaling_lab import train

    program = train.make_program(config)
    state = program.init()
    before = on_host(state.params)
    losses, gradients = [], None
    for seed in range(3):
        state, metrics = program.step(state, program.put(batch_of(config, seed)))
        losses.append(float(metrics["loss"]))
        if gradients is None and config.optimizer.moments == "float32":
            moments = optax.tree_utils.tree_get(state.optimizer, "mu")
            gradients = {k: m / (1 - B1) for k, m in on_host(moments).items()}
        elif gradients is None:
            squares = jax.device_get(metrics["square_norms"])
            gradients = {path: np.sqrt(square) for path, square in squares.items()}
    after = on_host(state.params)
    return losses, gradients, {path: after[path] - before[path] for path in after}


def on_host(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by their paths, in float32."""
    import jax

    from scaling_lab import dims

    leaves = jax.device_get(dims.leaves(tree))
    return {path: np.asarray(array, np.float32) for path, array in leaves.items()}


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


def differences(found: Any, wanted: Any, mode: Mode) -> dict[str, Any]:
    """The largest relative differences, and of which tensors.

    A router's bias moves by steps of one size, so where rounding may turn a token to
    another expert it says nothing and is left out.
    """
    losses = [abs(a - b) / abs(b) for a, b in zip(found[0], wanted[0], strict=True)]
    row: dict[str, Any] = {"loss": max(losses)}
    for name, left, right in zip(NAMES[1:], found[1:], wanted[1:], strict=True):
        sizes = {
            path: size
            for path, size in apart(left, right, mode.noise).items()
            if mode.exact or not path.endswith("router_bias_LE")
        }
        row[name] = max(sizes.values())
        row[f"{name}_of"] = max(sizes, key=lambda path: sizes[path])
    return row


def apart(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], noise: float
) -> dict[str, float]:
    """Relative differences of tensors that are more than a share of the whole."""
    norms = {path: float(np.linalg.norm(array)) for path, array in wanted.items()}
    least = noise * float(np.linalg.norm(list(norms.values())))
    return {
        path: float(np.linalg.norm(found[path] - wanted[path])) / norm
        for path, norm in norms.items()
        if norm > least
    }


def beyond(row: dict[str, Any]) -> list[str]:
    """What of a row is further from one device than its arithmetic's bound."""
    mode = MODES[case_of(row).mode]
    ok = row["status"] == "ok"
    return [name for name in NAMES if ok and row[name] > getattr(mode, name)]


def over(row: dict[str, Any], rounding: Mapping[str, Any]) -> bool:
    """Whether a row failed, or is further from one device than its arithmetic explains.

    Args:
      rounding: rows of `rounds`, by `alone`.
    """
    own = rounding.get(alone(case_of(row)), {})

    def explained(name: str) -> bool:
        return row[name] <= 2 * own.get(name, {}).get(row.get(f"{name}_of"), 0.0)

    return row["status"] != "ok" or not all(map(explained, beyond(row)))


def case_of(row: dict[str, Any]) -> Case:
    """The case that a row is of."""
    return Case(**{field: row[field] for field in Case._fields if field in row})


def alone(case: Case) -> str:
    """What one device does of a case, as words."""
    return f"{case.family} {case.mode} {case.parts}"


def rounds(case: Case) -> dict[str, Any]:
    """How far its arithmetic takes one device from float32, tensor by tensor."""
    simulated()
    one = functools.partial(measure, model_of(case), case.parts, False)
    row = {}
    for name, left, right in zip(NAMES, one(case.mode), one("float32"), strict=True):
        if name != "loss":
            sizes = apart(left, right, 0.0)
            row[name] = {path: float(f"{size:.3g}") for path, size in sizes.items()}
    return row


def text(found: dict[str, Any]) -> str:
    """The answer as a table; an exclamation mark is more than rounding explains."""
    lines = [f"{'layout':44} {'family':10} {'loss':>8} {'gradient':>9} {'update':>8}"]
    worst: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        start = f"{row['layout']:44} {row['family']:10} "
        case = case_of(row)
        said = "  ".join(["", case.routing, case.mode])
        if row["status"] != "ok":
            lines.append(f"{start}{row['status']}: {row['reason']}{said}")
            continue
        own = worst.setdefault(case.mode, dict.fromkeys(NAMES, 0.0))
        own |= {name: max(own[name], row[name]) for name in NAMES}
        cells = f"{row['loss']:8.1e} {row['gradient']:9.1e} {row['update']:8.1e}"
        lines.append(f"{start}{cells}{' !' if row['over'] else ''}{said.rstrip()}")
    past = sum(bool(beyond(row)) for row in found["rows"])
    over = sum(row["over"] for row in found["rows"])
    lines.append(
        f"{len(found['rows'])} of {found['cases']} cases, {past} past their bound, "
        f"{over} of these further than one device's own rounding explains; largest:"
    )
    for mode, largest in worst.items():
        told = ", ".join(f"{name} {size:.1e}" for name, size in largest.items())
        lines.append(f"  {mode}: {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
