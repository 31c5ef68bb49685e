"""Where is a small budget best spent, and do three budgets foretell a fourth?

Run:     python -m experiments.isoflop_small --out runs/iso [--budgets 3e12 1e13]
         [--jobs 2] [--most 5] [--dry-run] [--keep-stale] [--tune] [--keep]
         then: scaling-lab fit runs/iso --law isoflop --json fit.json
         --figure isoflop.svg
Takes:   two hours of two quiet CPU cores by the step times of its sizes (65 to 90
         GFLOP/s a core), two thirds of it the top budget; repeat the command after any
         stop. --tune, before it: two minutes.
Expect:  (written before the runs) valleys a tenth of a bit deep over a factor of eight
         in parameters, with optima near 0.15M parameters at 3e12 FLOP and 0.8M at 1e14;
         N* grows with an exponent of 0.45 to 0.55, and the loss at the top budget's
         optimum is within twice the seeds' spread of what the lower three foretell.

Llama of two layers over widths, on named text (`--data reference`, in bytes), a cosine
to a tenth for every run's own tokens. FLOP are 6 N D with every parameter in N, as
`fit` counts them; the loss is bits per byte of all text that is held out. The learning
rate was tuned at width 64 on a third of the smallest budget, and muP keeps it at other
widths (`config.mup`). The text has 4.4 MB: small sizes, which get most tokens, read it
up to fourteen times; `passes` in the table says how often.

The prediction of the highest budget's optimum is written to results/ before its first
run starts, from the runs of the lower ones alone, and is never written over.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scaling_lab as lab
from experiments import _foretelling, _isoflop
from scaling_lab import models, record
from scaling_lab.config import RunConfig

RESULTS = Path(__file__).parent / "results" / "isoflop_small"
#: Budget -> widths; the seeds beyond the first are of the width in brackets.
GRID: dict[float, tuple[tuple[int, ...], int]] = {
    3e12: ((32, 64, 96, 128, 160), 96),
    1e13: ((32, 64, 96, 128, 160), 96),
    3e13: ((64, 96, 128, 192, 256), 128),
    1e14: ((96, 128, 192, 256, 320), 192),
}
SEEDS = (0, 1, 2)
BASE, BATCH, LENGTH = 64, 16, 128
#: A batch in four parts: what lies between two products then fits a core's cache, and
#: a step takes 0.6 to 0.9 of the time (widths 96 to 320).
PARTS = 4
PREDICTION = "prediction.json"
#: Steps below which a run may be too short for a law of parameters and tokens alone.
SHORT = (1000, 1500, 2500)
#: Bytes of the text that is trained on.
TEXT = 4_368_165
#: Tried at width 64 with a third of the smallest budget, and the best of them.
TUNED_ON = 1e12
RATES, RATE = (2e-3, 4e-3, 8e-3, 1.6e-2), 4e-3


def model_of(width: int) -> Any:
    """Two layers whose heads are 32 wide."""
    toy = dataclasses.replace(models.size("llama", "toy"), N=4, K=4, H=32, F=352)
    return models.resized(toy, width=width, layers=2)


def config_of(flops: float, width: int, seed: int, rate: float = RATE) -> RunConfig:
    """A run that spends a budget: 6 N D, D in whole steps."""
    model = model_of(width)
    count = models.family_of(model).parameter_count(model)
    steps = max(2, round(flops / (6 * count * BATCH * LENGTH)))
    config = lab.configure(
        layout="data=1",
        target="cpu:1",
        batch=BATCH,
        accumulate=PARTS,
        length=LENGTH,
        steps=steps,
        seed=seed,
        learning_rate=rate,
        warmup=min(100, steps // 10),
        data="reference",
        evaluate_batches=160,
    )
    return dataclasses.replace(config, model=model, mup=model_of(BASE), size=f"{width}")


def configs_of(
    grid: Mapping[float, tuple[tuple[int, ...], int]],
) -> list[RunConfig]:
    """Every run of some budgets, the smallest first."""
    found = []
    for flops, (widths, again) in sorted(grid.items()):
        found += [config_of(flops, width, SEEDS[0]) for width in widths]
        found += [config_of(flops, again, seed) for seed in SEEDS[1:]]
    return found


CONFIGS = configs_of(GRID)


def study(
    grid: Mapping[float, tuple[tuple[int, ...], int]],
    out: Path,
    budgets: Sequence[float],
    **options: Any,
) -> list[record.RunRecord]:
    """Runs some budgets of a grid; its highest only once the others foretold it.

    Args:
      options: of `_isoflop.run_all`.

    Raises:
      ValueError: the lower budgets have no optima to foretell from.
    """
    top = max(grid)
    lower = {c: grid[c] for c in grid if c != top and (c in budgets or top in budgets)}
    configs = configs_of(lower)
    done = _isoflop.run_all(configs, out, **options)
    whole = [row for row in done if row.status == "ok"]
    if len(lower) < len(grid) - 1 or len(whole) < len(configs):
        return done
    if _foretelling.write_once(out / PREDICTION, _foretelling.foretell(whole, top)):
        print(f"foretold: {out / PREDICTION}")
    if top in budgets:
        done += _isoflop.run_all(configs_of({top: grid[top]}), out, **options)
    return done


def tune(out: Path, keeps: bool, **options: Any) -> None:
    """Learning rates at the base's width, with a small budget."""
    configs = [config_of(TUNED_ON, BASE, SEEDS[0], rate) for rate in RATES]
    done = _isoflop.run_all(configs, out / "tune", **options)
    for row in done:
        found = (row.measured or {}).get("held_out") or {}
        print(f"{row.asked['learning_rate']:.3g}: {found.get('final')}")
    if keeps:
        _isoflop.keep(done, RESULTS / "tune" / record.FILE_NAME)


def text(rows: Sequence[record.RunRecord], out: Path) -> str:
    """The runs, and what was foretold beside what came."""
    points = _isoflop.points_of(rows)
    lines = ["  FLOP  width   params     tokens  passes  seed  bits a byte  seconds"]
    lines += [
        f"{p['budget']:6.0e} {p['width']:6} {p['params']:8} {p['tokens']:10} "
        f"{p['tokens'] / TEXT:7.2f} {p['seed']:5} {p['loss']:12.4f} {p['seconds']:8.0f}"
        for p in points
    ]
    spread = _isoflop.spreads(points)
    lines += [f"{c:.0e} FLOP: seeds spread by {s:.4f}" for c, s in spread.items()]
    lines += _foretelling.foretold_of(out / PREDICTION, points)
    lines += _foretelling.of_longer_runs(points, max(GRID), BATCH * LENGTH, SHORT)
    return "\n".join(lines)


def keep(out: Path) -> None:
    """Records, prediction, fit and figure into results/.

    Raises:
      ValueError: there are too few runs to fit; the records are kept.
    """
    done = record.latest(record.read(record.file_of(out))).values()
    asked = {config.id: number for number, config in enumerate(_isoflop.read(CONFIGS))}
    rows = [row for row in done if row.status == "ok" and row.id in asked]
    rows.sort(key=lambda row: asked[row.id])
    _isoflop.keep(rows, RESULTS / record.FILE_NAME)
    if (out / PREDICTION).exists():
        found = json.loads((out / PREDICTION).read_text("utf-8"))
        _foretelling.write_once(RESULTS / PREDICTION, found)
    fitted = lab.fit(RESULTS, law="isoflop")
    written = json.dumps(fitted.to_json(), indent=1, allow_nan=False)
    (RESULTS / "fit.json").write_text(written + "\n", "utf-8")
    (RESULTS / "isoflop.svg").write_text(fitted.figure(), "utf-8")


def main() -> None:
    given = _given()
    options = {"jobs": given.jobs, "keep_stale": given.keep_stale}
    if given.tune:
        tune(given.out, given.keep, **options)
        return
    if given.dry_run:
        grid = {flops: GRID[flops] for flops in given.budgets}
        print("\n".join(map(_isoflop.label, configs_of(grid))))
        return
    try:
        done = study(GRID, given.out, given.budgets, most=given.most, **options)
        if given.keep:
            keep(given.out)
    except ValueError as error:  # what has run is on disk
        raise SystemExit(f"error: {error}") from None
    whole = [row for row in done if row.status == "ok"]
    print(text(whole, given.out))
    print(f"records: {record.file_of(given.out)}")
    raise SystemExit(int(len(whole) < len(done)))


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/iso"))
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=list(GRID), choices=list(GRID)
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--tune", action="store_true", help="only learning rates")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    parser.add_argument(
        "--keep-stale", action="store_true", help="keep runs of other code"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
