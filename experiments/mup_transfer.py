"""Does a learning rate that was tuned at one width stay the best at four times it?

Run:     python -m experiments.mup_transfer [--out runs/mup_transfer] [--keep]
Takes:   about half an hour of a quiet CPU core; repeat after any stop.
Expect:  (written before the runs) with muP the best rate is the same at every width,
         and wider is better at every rate; in the standard parametrisation the best
         rate halves or quarters from width 64 to 256, and at rates above it the wider
         model is worse than the narrow one.

Llama of two layers on named text, 400 steps of 1024 bytes, one seed, six rates a factor
of two apart; muP's base is width 64, where both parametrisations are the same run (Yang
et al. 2022, "Tensor Programs V", figure 1). Bits per byte are of the same held-out text
everywhere.

Runs that are much shorter tell nothing: a first grid of 150 steps of 512 bytes ended
near what the bytes' frequencies alone give, with one best rate for all widths in both
parametrisations.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scaling_lab as lab
from experiments import _isoflop
from experiments.isoflop_small import model_of
from scaling_lab import record, sweep
from scaling_lab.config import RunConfig

RESULTS = Path(__file__).parent / "results" / "mup_transfer"
BASE, WIDTHS = 64, (64, 128, 256)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def config_of(width: int, rate: float, mup: bool) -> RunConfig:
    """One run."""
    config = lab.configure(
        layout="data=1",
        target="local",
        batch=8,
        length=128,
        steps=400,
        learning_rate=rate,
        data="reference",
        evaluate_batches=64,
    )
    base = model_of(BASE) if mup else None
    model = model_of(width)
    return dataclasses.replace(config, model=model, mup=base, size=f"{width}")


#: At the base's width both are one run.
CONFIGS = [
    config_of(width, rate, mup)
    for width in WIDTHS
    for mup in (True, False)
    if mup or width != BASE
    for rate in RATES
]


def run(config: RunConfig, timeout: Any, cache_dir: Any, watch: Any) -> Any:
    """In this process: a start of Python would take longer than a run."""

    def tell(event: str, **facts: Any) -> None:
        watch(event, config, facts)

    return sweep.run_here(config, cache_dir=cache_dir, tell=tell)


def answer(rows: Sequence[record.RunRecord]) -> list[dict[str, Any]]:
    """Of each parametrisation and width the loss by rate, and the best rate."""
    losses: dict[tuple[str, int], dict[float, float]] = {}
    for row in rows:
        asked = row.asked["config"]
        width = asked["model"]["D"]
        kinds = ["mup" if asked.get("mup") else "standard"]
        for kind in ["mup", "standard"] if width == BASE else kinds:
            final = (row.measured or {})["held_out"]["final"]
            losses.setdefault((kind, width), {})[row.asked["learning_rate"]] = final
    return [
        {
            "parametrisation": kind,
            "width": width,
            "best_rate": min(found, key=lambda rate: found[rate]),
            "bits_per_byte": {f"{rate:g}": found[rate] for rate in sorted(found)},
        }
        for (kind, width), found in sorted(losses.items())
    ]


def text(table: Sequence[dict[str, Any]]) -> str:
    """The table to read; a star is at the best rate."""
    rates = list(table[0]["bits_per_byte"])
    lines = [f"{'':16} {'width':>6}" + "".join(f"{rate:>9}" for rate in rates)]
    for row in table:
        found = row["bits_per_byte"]
        cells = [
            f"{found[rate]:8.3f}{'*' if float(rate) == row['best_rate'] else ' '}"
            for rate in rates
            if rate in found
        ]
        lines.append(f"{row['parametrisation']:16} {row['width']:6}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mup_transfer"))
    parser.add_argument("--keep", action="store_true", help="write it to results/")
    parser.add_argument("--keep-stale", action="store_true", help="keep older code's")
    given = parser.parse_args()
    done = _isoflop.run_all(CONFIGS, given.out, keep_stale=given.keep_stale, run=run)
    whole = [row for row in done if row.status == "ok"]
    table = answer(whole)
    if given.keep:
        _isoflop.keep(whole, RESULTS / record.FILE_NAME)
        (RESULTS / "table.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(text(table))
    raise SystemExit(int(len(whole) < len(done)))


if __name__ == "__main__":
    main()
