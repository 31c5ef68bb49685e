"""Compiled records that experiments keep: small, resumable, priced as of today."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import scaling_lab as lab
from scaling_lab import record
from scaling_lab.compile import read
from scaling_lab.dims import AXES
from scaling_lab.sweep import compile_run

RESULTS = Path(__file__).parent / "results"
#: Scheduled modules, by config: large, so not in the repository.
MODULES = Path(__file__).parents[1] / "runs" / "modules"
#: What is kept of a compiled column.
COLUMNS = (
    *("argument_bytes", "output_bytes", "temporary_bytes", "alias_bytes"),
    *("peak_bytes", "peak_from", "hbm_bytes", "needed_bytes", "fits"),
    *("scheduled_seconds", "modelled_seconds", "step_seconds"),
    *("exposed_seconds", "hidden_seconds", "copy_seconds", "flops"),
    *("by_verb", "by_pass", "by_axis", "trip_counts_known", "live_bytes"),
    *("compile_seconds", "compiler", "target", "mesh"),
    *("wire_bytes", "kernel_bytes", "unasked"),
)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """``--compile`` and ``--json``."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--compile", action="store_true", help="what is not there")
    made.add_argument("--json", action="store_true")
    return made


def arguments(doc: str | None) -> argparse.Namespace:
    """What `parser` reads."""
    return parser(doc).parse_args()


def records(
    configs: Sequence[lab.RunConfig], path: Path, compiles: bool = False
) -> dict[str, record.RunRecord]:
    """Records of configs by id, from a file, which grows by what is compiled now.

    Args:
      compiles: what is not in the file is compiled; a compiler that is not installed
        costs its rows alone, and is told.
    """
    known = record.latest(record.read(path)) if path.exists() else {}
    for config in configs if compiles else ():
        if config.id in known:
            continue
        module = MODULES / f"{config.id}.txt"
        try:
            found = compile_run(config, module=module)
        except ValueError as error:
            print(f"{config.size} for {config.target}: {error}")
            continue
        known[config.id] = small(found)
        record.append(path, known[config.id])
    wanted = {config.id: known[config.id] for config in configs if config.id in known}
    return {name: repriced(found) for name, found in wanted.items()}


def small(found: record.RunRecord) -> record.RunRecord:
    """The record without its lists of collectives and buffers."""
    column = found.compiled
    compiled = column and {name: column.get(name) for name in COLUMNS}
    predicted = {k: v for k, v in (found.predicted or {}).items() if k != "collectives"}
    return dataclasses.replace(found, compiled=compiled, predicted=predicted)


def repriced(found: record.RunRecord) -> record.RunRecord:
    """The record with its module, where that is here, priced as it would be today."""
    module = MODULES / f"{found.id}.txt"
    column = found.compiled or {}
    if found.status != "ok" or not module.exists():
        return found
    # Written down, a mesh has its axes by name; a module counts devices by their order.
    mesh = {axis: column["mesh"][axis] for axis in AXES if axis in column["mesh"]}
    fresh = read(module.read_text(), mesh, column["target"])
    return small(dataclasses.replace(found, compiled=column | fresh))


def beside(row: Any, found: record.RunRecord | None) -> dict[str, Any]:
    """A `compiled_against_published.Published` row and its compiled step."""
    column = (found.compiled or {}) if found else {}
    seconds = column.get("step_seconds")
    return {
        "run": row.run,
        "model": row.model,
        "target": row.config.target,
        "published_seconds": row.seconds,
        "step_seconds": seconds,
        "exposed_seconds": column.get("exposed_seconds"),
        "hidden_seconds": column.get("hidden_seconds"),
        "ratio": seconds / row.seconds if seconds else None,
        "differs": row.differs,
    }


def errors(ratios: Iterable[float]) -> dict[str, Any]:
    """How far ratios lie from one: how many, the median and the mean."""
    away = np.abs(np.asarray(list(ratios)) - 1)
    if not len(away):
        return {"rows": 0, "median": None, "mean": None}
    median, mean = float(np.median(away)), float(np.mean(away))
    return {"rows": len(away), "median": median, "mean": mean}


def error_text(found: dict[str, Any]) -> str:
    """As in ``median error 7.1 %, mean 9.0 %, of 8 rows``."""
    if not found["rows"]:
        return "no rows; run with --compile"
    return (
        f"median error {found['median']:.1%}, mean {found['mean']:.1%}, of "
        f"{found['rows']} rows"
    )


def say(
    found: dict[str, Any], text: Callable[[dict[str, Any]], str], as_json: bool
) -> None:
    """Prints an answer."""
    print(json.dumps(found, indent=1) if as_json else text(found))


def key(asked: dict[str, Any]) -> str:
    """What was asked of a run, whatever text it was then read from."""
    return json.dumps({**asked, "data": None}, sort_keys=True)


def learned(found: record.RunRecord) -> record.RunRecord:
    """The record of a run with what it learned, and nothing of its time and memory."""
    measured = found.measured or {}
    loss = measured["loss"]
    values = [round(value, 4) for value in loss["values"]]
    return dataclasses.replace(
        found,
        predicted=None,
        compiled=None,
        measured={
            "loss": {**loss, "steps": [], "values": values},
            "held_out": measured["held_out"],
        },
    )
