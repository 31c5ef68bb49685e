"""``scaling-lab fit`` and ``laws``: scaling laws fitted to tables and to records."""

from __future__ import annotations

import dataclasses
import json as json_
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read the table. Columns that are not named are guessed, and said."""

    n_column: str | None = None
    """Column of the parameters."""
    d_column: str | None = None
    """Column of the training tokens; without one, FLOPs / (6 parameters)."""
    c_column: str | None = None
    """Column of the training FLOPs; without one, 6 parameters tokens."""
    loss_column: str | None = None
    """Column of the loss, or of whatever the law predicts."""
    column: tuple[str, ...] = ()
    """Other columns that the law needs, as width=d_model depth=n_layer, or x=flops."""
    scale: tuple[str, ...] = ()
    """Units of columns, as d=1e9 for tokens in billions."""
    where: tuple[str, ...] = ()
    """Rows to fit, as dataset=c4 "flops>=1e18"."""
    weight_column: str | None = None
    """Column of weights; sigma:NAME weighs by 1/NAME²."""
    drop_highest: int = 0
    """Leave out so many rows of the highest loss."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What to do with rows that repeat another."""


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How to fit."""

    huber: float | None = None
    """Minimise Huber's loss of log residuals with this delta, as 1e-3."""
    loss: Literal["huber", "log_mse", "mse"] | None = None
    """What to minimise; default: what the law's paper did."""
    solver: Literal["lse", "projection"] | None = None
    """Descent of all parameters, or of the exponents with the coefficients solved."""
    fix: tuple[str, ...] = ()
    """Parameters to hold, as alpha=0.35."""
    window: float | None = None
    """Of every isoFLOP budget, only sizes within this factor of the best one's."""
    bootstrap: int = 400
    """Refits to resampled points, for intervals; 0 for none."""
    resample: Literal["case", "parametric"] = "case"
    """Draw rows again, or the fit with noise."""
    interval: float = 0.95
    """Share of what may be inside an interval, of the bootstrap and of the profile."""
    seed: int = 0
    """Of the bootstrap."""


def fit(
    table: Annotated[Path, tyro.conf.Positional],
    reading: Annotated[Reading, tyro.conf.arg(name="")],
    fitting: Annotated[Fitting, tyro.conf.arg(name="")],
    law: str = "chinchilla",
    json: Path | None = None,
    figure: Path | None = None,
    report: Path | None = None,
) -> int:
    """Fit a scaling law to a table of runs, or to a folder of records.

        scaling-lab fit runs.csv --law chinchilla --n-column params --d-column tokens \\
            --loss-column loss --drop-highest 5 --huber 1e-3 --json fit.json
        scaling-lab fit runs/iso --law isoflop --figure isoflop.svg

    Says what was read and what is doubtful before it says a number: flat directions,
    columns that move as one, units that cannot be.

    Args:
        table: A .csv, .tsv, .json, .jsonl or .parquet file, or a folder of records.
        reading: How to read it.
        fitting: How to fit.
        law: Which; `scaling-lab laws` lists them.
        json: Write everything to this file; - prints it instead of the report.
        figure: Write the plots to this .svg file.
        report: Write the report with its plots to this .html file.
    """
    from scaling_lab.data import store
    from scaling_lab.studies import fitting as room

    for path, ending in ((figure, ".svg"), (report, ".html")):
        if path is not None and path.suffix != ending:
            raise ValueError(f"{path}: plots are written as {ending}")
    found = room.fit(table, law, **vars(reading), **vars(fitting))
    text = json_.dumps(found.to_json(), indent=1, allow_nan=False)
    printed = str(json) == "-"
    files = {} if json is None or printed else {json: text + "\n"}
    files |= {figure: found.figure() + "\n"} if figure is not None else {}
    files |= {report: found.report() + "\n"} if report is not None else {}
    store.write_all(files)
    print(text if printed else found)
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    for path in files:
        say.print(f"written: {path}", markup=False)
    return 0


def laws(json: bool = False) -> int:
    """List the scaling laws: formula, columns they need, published constants.

    Args:
        json: Print JSON.
    """
    from scaling_lab.studies import laws as room
    from scaling_lab.studies.law import ROLES

    found = {name: room.law(name) for name in room.names()}
    if json:
        rows = [
            {
                "law": name,
                "title": law.title,
                "formula": law.formula,
                "parameters": {each.name: each.meaning for each in law.parameters},
                "needs": list(law.needs),
                "published": {k: vars(v) for k, v in law.references.items()},
            }
            for name, law in found.items()
        ]
        json_.dump(rows, sys.stdout, indent=1, default=dict)
        print()
        return 0
    for name, law in found.items():
        needs = ", ".join(f"{role} ({ROLES[role]})" for role in law.needs)
        print(f"{name}: {law.title}\n  {law.formula}\n  needs {needs}")
        for key, reference in law.references.items():
            values = ", ".join(f"{k} {v:.5g}" for k, v in reference.values.items())
            print(f"  {key}: {values}\n    {reference.source} ({reference.checked})")
    return 0
