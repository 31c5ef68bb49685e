"""``scaling-lab predict`` and ``calibrate``: what arithmetic says, and its evidence."""

from __future__ import annotations

import json as json_
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from scaling_lab.cli.grammar import Words, local_devices, words

#: Rows from which a bar is worth showing.
_LONG = 5000


def predict(
    run: Words,  # pyright: ignore[reportInvalidTypeForm]
    runs: Path | None = None,
    out: Path | None = None,
    calibration: Path | None = None,
    json: bool = False,
) -> int:
    """Predict step time, memory and efficiency, of one run or of a table of runs.

    A table needs seq_len, global_batch_tokens, hardware and chips. Also read are run,
    source, framework, model, params, active_params, layers, d_model, n_heads, kv_heads,
    head_dim, d_ff, mlp, vocab, n_experts, top_k, microbatch_seqs, data, fsdp,
    zero_stage, tensor, stage, virtual_stages, context, expert, schedule, precision,
    remat, technique and, to compare with, step_seconds. Blanks are filled in, and what
    was assumed is written beside; other columns are named and carried along.

        scaling-lab predict --runs FILE.csv --out FILE.csv
        scaling-lab predict --size 8b --target h100:8x8 --layout fsdp=64 --batch 128

    What does not fit in memory is priced all the same, with exit code 0; `fits` of
    --json says it.

    Args:
        run: One run, where no table is given.
        runs: A table of runs.
        out: Where the table goes, with the predicted columns.
        calibration: Efficiencies of your own, as `calibrate` writes them.
        json: Print JSON.
    """
    from scaling_lab.cost import calibrations

    eff = calibrations.read(calibration) if calibration else None
    if runs is not None:
        if out is None:
            raise ValueError("--runs needs --out FILE.csv, where the table goes")
        return _table(runs, out, eff)
    if out is not None:
        raise ValueError("--out is for a table: give --runs FILE.csv too")
    return _one(words(run), eff, json)


def _table(runs: Path, out: Path, eff: Any) -> int:
    from scaling_lab.cost.tables import predict_table, read_table, unread

    table = read_table(runs)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, as {out}/o.csv")
    say = Console(stderr=True, highlight=False)
    with Progress(console=say, transient=True, disable=len(table) < _LONG) as bar:
        task = bar.add_task("predicting", total=len(table))
        done = predict_table(table, eff, lambda n: bar.update(task, completed=n))
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".unfinished")
    done.to_csv(unfinished, index=False)
    os.replace(unfinished, out)
    _summary(done, out, say)
    if names := unread(table):
        said = f"columns not read: {', '.join(names)} (--help lists those that are)"
        say.print(said, soft_wrap=True, markup=False)
    return 0


def _summary(done: Any, out: Path, say: Console) -> None:
    read = done[done.prediction_status == "ok"]
    say.print(f"{len(read)} of {len(done)} rows predicted: {out}", soft_wrap=True)
    for reason in done.prediction_reason[done.prediction_status != "ok"]:
        say.print(f"  not read: {reason}", soft_wrap=True, markup=False)
    if "step_seconds" in done.columns:
        import pandas as pd

        clock = pd.to_numeric(read.step_seconds, errors="coerce")
        error = (read.predicted_step_seconds / clock - 1).abs().dropna()
        if len(error):
            say.print(
                f"against step_seconds: median error {error.median():.1%}, mean "
                f"{error.mean():.1%} of {len(error)} rows",
                soft_wrap=True,
            )


def _one(asked: dict[str, Any], eff: Any, as_json: bool) -> int:
    from scaling_lab.config import configure
    from scaling_lab.cost.predict import predict as price
    from scaling_lab.cost.runs import points_of
    from scaling_lab.sweep.run import check_legal

    config = configure(**asked, devices=local_devices(asked["target"]))
    check_legal(config)
    found = price(points_of([config]), eff)
    chip = config.parsed_target().chip
    limit = chip.device_hbm_bytes if chip is not None else None
    facts = found.row(0)
    fits = None if limit is None else facts["hbm_bytes"] <= limit
    if as_json:
        more = {"target": config.target, "id": config.id, "fits": fits}
        print(json_.dumps({**facts, **more}, indent=1))
        return 0
    say = Console(highlight=False)
    say.print(
        f"{config.family} {config.size} on {config.target}, layout "
        f"{config.layout.name}, batch {config.batch} × {config.length}"
    )
    say.print(
        f"  step {facts['step_seconds']:.4g} s, 80 % between "
        f"{facts['step_seconds_low']:.4g} and {facts['step_seconds_high']:.4g}"
    )
    for name, seconds in facts["seconds"].items():
        if seconds > 0:
            say.print(f"    {name:22} {seconds:10.4g} s")
    say.print(f"  {facts['tokens_per_second_per_chip']:,.0f} tokens/s a chip")
    of = "" if limit is None else f" of {limit / 2**30:.2f}"
    verdict = ": does not fit" if fits is False else ""
    say.print(f"  {facts['hbm_bytes'] / 2**30:.2f}{of} GiB a device{verdict}")
    say.print(f"  {facts['mfu_causal']:.1%} MFU (causal, 16-bit peak)")
    return 0


def calibrate(
    records: Annotated[Path, tyro.conf.Positional],
    out: Path = Path("calibration.json"),
    calibration: Path | None = None,
) -> int:
    """Fit efficiencies to measured steps: your own records, or a table of runs.

        scaling-lab calibrate runs/a --out mine.json
        scaling-lab calibrate published_runs.csv --out efficiencies.json

    Records refine the efficiencies that come with the lab (or those of --calibration)
    for the chips they ran on, and leave every other chip's as they are; a table
    replaces them all.

    Args:
        records: What a sweep wrote to, or a table with step_seconds.
        out: Where the efficiencies go.
        calibration: Efficiencies to stay near.
    """
    from scaling_lab.cost import calibrating, calibrations

    start = calibrations.read(calibration) if calibration else None
    if records.suffix == ".csv":
        found = calibrating.from_table(records, start)
        made = f"{records.name}: {found.what}"
        calibrations.write(out, found.fit, found.half_width, made, found.rows)
    else:
        found = calibrating.from_records(records, start)
        made = f"{records.name}: {found.what}"
        calibrations.write_own(out, found, made, calibration or calibrations.FROZEN)
    of = f" of {', '.join(found.chips)}" if found.chips else ""
    residuals = np.abs(np.expm1(found.fit.residuals))
    Console(stderr=True, highlight=False).print(
        f"{len(found.rows)} rows{of}, median error of the fit "
        f"{np.median(residuals):.1%}: {out}",
        soft_wrap=True,
    )
    return 0
