"""Does a small model still learn with experts, sparse masks and narrow arithmetic?

Run:     python -m experiments.moe_and_sparse_quality [--dry-run] [--seeds 0 1 2]
         [--json] [--keep]
Takes:   about 40 minutes of two CPU cores; repeat the command after any stop.
Expect:  (written before the runs) 400 000 bytes are the beginning of learning, where a
         text's last few words say most. So experts, with three times the parameters
         at the same active FLOPs, gain 0.02 to 0.06 bits a byte on the dense model;
         local-global layers are within 0.01 of full attention; a window of 64 and a
         map of blocks lose up to 0.02; chunks lose most of the masks, since half of
         their queries see less than 64 bytes; learned blocks are within 0.02 and take
         longer than full attention, whose square is small at this length; bfloat16 is
         within the spread of the seeds, and eight bits lose less than 0.02.

One Llama of 0.4M parameters on named text (`--data reference`), one change a row; the
experts' width is half of the dense layer's, two of eight a token. Bits per byte are of
the same held-out text in every run; the spread is from the lowest to the highest seed.
Time is the processor's, of one step on all cores, every row's in turn in one process,
so that a busy machine slows none more than another; only its ratio says anything.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import scaling_lab as lab
from experiments._compiled import key
from scaling_lab import cost, models, record
from scaling_lab.cli.sweep import run_configs
from scaling_lab.config import PRECISIONS, RunConfig, with_data
from scaling_lab.parallel.masks import Blocks
from scaling_lab.parallel.sight import Sight
from scaling_lab.train import make_program

OUT = Path("runs/moe_and_sparse_quality")
RESULTS = Path(__file__).parent / "results" / "moe_and_sparse_quality"
LENGTH, SEEDS = 512, (0, 1, 2)
SIZES = {"L": 4, "D": 96, "N": 6, "K": 2, "H": 16}
#: What every other row is held against.
BASE = "full attention, dense, float32"


def block_map(size: int = 32) -> Blocks:
    """Of a row's blocks the own, the one before, the first, and one drawn by lot."""
    count = LENGTH // size
    drawn = np.random.default_rng(0)
    seen = np.eye(count, dtype=bool) | np.eye(count, k=-1, dtype=bool)
    seen[:, 0] = True
    for row in range(1, count):
        seen[row, drawn.integers(row)] = True
    return Blocks.of(size, seen)


def config_of(model: Any, seed: int, **words: Any) -> RunConfig:
    """A run of the study."""
    config = lab.configure(
        layout="data=1",
        target="cpu:1",
        batch=4,
        length=LENGTH,
        steps=200,
        seed=seed,
        learning_rate=3e-3,
        data="reference",
        evaluate_batches=16,
        **words,
    )
    return dataclasses.replace(config, model=model, size="0.4m")


def rows() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Of every row of the table its model and the words of its runs."""
    dense = dataclasses.replace(models.size("llama", "toy"), **SIZES, F=256)
    routed = dataclasses.replace(models.size("mixtral", "toy"), **SIZES, F=128)
    sights = {
        "local-global: window of 64, every 4th layer all": Sight(window=64, every=4),
        "window of 64": Sight(window=64),
        "chunks of 128": Sight(chunk=128),
        "map of blocks of 32": Sight(blocks=block_map()),
        "learned: 3 chosen blocks of 32, own and last": Sight(top=3, block=32),
    }
    found: dict[str, tuple[Any, dict[str, Any]]] = {BASE: (dense, {})}
    found["8 experts, 2 a token"] = (routed, {})
    for name, sight in sights.items():
        found[name] = (models.seeing(dense, sight), {})
    for precision in PRECISIONS:
        if precision != "float32":
            found[precision] = (dense, {"precision": precision})
    return found


ROWS = rows()
#: Every row's run with one seed, then with the next, so that clocks compare.
CONFIGS = [
    config_of(model, seed, **words) for seed in SEEDS for model, words in ROWS.values()
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    parser.add_argument(
        "--keep-stale", action="store_true", help="keep runs of other code"
    )
    given = parser.parse_args()
    configs = [config for config in CONFIGS if config.seed in given.seeds]
    options = {"dry_run": given.dry_run, "keep_stale": given.keep_stale}
    with contextlib.redirect_stdout(sys.stderr if given.json else sys.stdout):
        code = run_configs(configs, OUT, **options)
    if given.dry_run:
        raise SystemExit(code)
    done = record.latest(record.read(record.file_of(OUT)))
    kept = [small(row) for row in done.values() if row.status == "ok"]
    found = answer(kept, clock())
    if given.keep:
        file = RESULTS.with_suffix(".jsonl")
        file.write_text("".join(row.to_json() + "\n" for row in kept))
        RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, RESULTS.with_suffix(".svg"))
    print(json.dumps(found, indent=1) if given.json else text(found))
    raise SystemExit(code)


def small(row: record.RunRecord) -> record.RunRecord:
    """A record without what this question does not ask: collectives, every clock."""
    measured = row.measured or {}
    told = ("loss", "held_out")
    clock = (measured.get("step_seconds") or {}).get("median")
    kept = {key: measured[key] for key in told if key in measured}
    if "values" in (kept.get("loss") or {}):
        loss = kept["loss"]
        kept["loss"] = {"final": loss["final"], "every_20th": loss["values"][19::20]}
    return dataclasses.replace(
        row,
        predicted=None,
        compiled=None,
        measured={**kept, "step_seconds": {"median": clock}},
    )


def clock(rounds: int = 5) -> dict[str, float]:
    """Processor seconds of a step of every row, taken in turn."""
    steps = {}
    for name, (model, words) in ROWS.items():
        config, dataset = with_data(config_of(model, 0, **words))
        program = make_program(config)
        batch = dataset.stream("train", config.batch, config.length, 0).batch(0)
        steps[name] = [program, program.init(), program.put(batch)]
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):  # the first compiles
        for name, (program, state, batch) in steps.items():
            start = time.process_time()
            steps[name][1], metrics = program.step(state, batch)
            jax.block_until_ready(metrics)
            if number:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in spent.items()}


def answer(
    found: list[record.RunRecord], seconds: dict[str, float]
) -> list[dict[str, Any]]:
    """The table: of every row its bits per byte and its cost, the base first.

    Args:
      seconds: of a step of every row.
    """
    by_id = {row.id: row for row in found}
    by_asked = {key(row.asked["config"]): row for row in found}
    table = []
    for name, (model, words) in ROWS.items():
        own = [config_of(model, seed, **words) for seed in SEEDS]
        done = [
            by_id.get(config.id) or by_asked.get(key(config.to_json()))
            for config in own
        ]
        done = [row for row in done if row is not None]
        if not done:
            continue
        bits = [row.measured["held_out"]["final"] for row in done if row.measured]
        flops = cost.per_token(own[0])["masked_attention_without_embedding"]
        table.append(
            {
                "row": name,
                "seeds": len(bits),
                "bits_per_byte": statistics.mean(bits),
                "lowest": min(bits),
                "highest": max(bits),
                "params": cost.parameters(own[0]),
                "flops_per_token": flops,
                "processor_seconds": seconds[name],
            }
        )
    for row in table:
        row["worse_by"] = row["bits_per_byte"] - table[0]["bits_per_byte"]
        for spent in ("flops_per_token", "processor_seconds"):
            row[f"{spent}_ratio"] = row[spent] / table[0][spent]
    return table


def text(table: list[dict[str, Any]]) -> str:
    """The table to read."""
    lines = [
        f"{'':49} {'held-out bits per byte':^32}  of the first row's",
        f"{'':49} {'mean':>6} {'spread':>15} {'worse by':>9} "
        f"{'FLOPs':>6} {'time':>6} {'params':>7}",
    ]
    for row in table:
        spread = f"{row['lowest']:.3f} to {row['highest']:.3f}"
        lines.append(
            f"{row['row']:49} {row['bits_per_byte']:6.3f} {spread:>15} "
            f"{row['worse_by']:+9.3f} {row['flops_per_token_ratio']:6.2f} "
            f"{row['processor_seconds_ratio']:6.2f} {row['params'] / 1e6:6.2f}M"
        )
    return "\n".join(lines)


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Bits per byte of every row, with its spread, against its FLOPs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.38 * len(table) + 1.1), layout="constrained")
    axes: Any = figure.subplots()
    axes.axvline(table[0]["bits_per_byte"], color="0.85", zorder=0)
    for place, row in enumerate(reversed(table)):
        axes.plot([row["lowest"], row["highest"]], [place] * 2, color="tab:blue")
        axes.plot(row["bits_per_byte"], place, "o", color="tab:blue")
    labels = [
        f"{row['row']}\n{row['flops_per_token_ratio']:.2f} of the FLOPs"
        for row in reversed(table)
    ]
    axes.set_yticks(range(len(table)), labels, fontsize=7)
    axes.set_xlabel("held-out bits per byte: mean and spread of the seeds")
    figure.savefig(path)


if __name__ == "__main__":
    main()
