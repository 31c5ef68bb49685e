"""Records to rows: one flat DataFrame, and which losses ought to agree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scaling_lab.record import RunRecord, file_of, latest, read
from scaling_lab.studies.columns import COLUMNS, Column, column, ordered_axes
from scaling_lab.studies.markup import clean
from scaling_lab.studies.plain import cells_of, known

Records = str | Path | Iterable[RunRecord]

#: What two runs may differ in and still owe each other the same loss. These words
#: are left out of ``asked`` and of ``asked.config`` before the rest is compared.
PLACEMENT = frozenset(
    "layout layout_name mesh target simulated devices remat stack axis_type "
    "loss_chunks evaluate_batches xla_flags".split()
)
_DTYPES = {
    "text": "string",
    "time": "string",
    "flag": "boolean",
    "count": "Int64",
    "bytes": "Int64",
}


def frame(records: Records) -> pd.DataFrame:
    """The latest run of every id as one row; the columns are those of `COLUMNS`.

    Text is ``string``, flags ``boolean``, counts and bytes ``Int64``, the rest
    ``float64``; what is missing is ``pd.NA`` or NaN, never zero. Columns that depend
    on the runs (``collective_bytes_<axis>``, ``mfu_<convention>``,
    ``flops_per_token_<convention>``, ``predicted_<name>``) exist where a run has them.

    Args:
      records: a record file, a folder that holds one, or the records themselves.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no record in it.
    """
    return frame_of(runs_of(records))


def runs_of(records: Records) -> list[RunRecord]:
    """The latest record of every id, in the order first met."""
    if isinstance(records, (str, Path)):
        runs = list(latest(read(records)).values())
        where = f"{file_of(records)} holds no readable run"
    else:
        runs = list(latest(records).values())
        where = "no records were given"
    if not runs:
        raise ValueError(
            f"{where}; write some first: scaling-lab sweep --family llama "
            "--size toy --out DIR"
        )
    return runs


def frame_of(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """One row for each of these runs, in this order."""
    fixed = [
        each
        for each in COLUMNS
        if each.path and each.name not in ("collective_bytes", "simulated")
    ]
    rows = [{each.name: _read(run, each) for each in fixed} for run in runs]
    for row, run in zip(rows, runs, strict=True):
        row["simulated"] = simulated_run(run)
        row["tokens_per_second_per_device"] = _per_device(row)
        row.update(_collectives(run))
        for level, prefix in (
            ("predicted", "predicted_"),
            ("measured.mfu", "mfu_"),
            ("measured.flops_per_token", "flops_per_token_"),
        ):
            row.update(_numbers(run, level, prefix))
    _compare_losses(rows, runs)
    names = _names(rows)
    return pd.DataFrame(
        {
            name: pd.array(
                [row.get(name) for row in rows],
                dtype=_DTYPES.get(column(name).kind, "float64"),
            )
            for name in names
        }
    )


def dig(run: RunRecord, path: str) -> Any:
    """The value at a dotted path of a record, or ``None`` where it ends early."""
    value: Any = run
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, RunRecord):
            value = getattr(value, part, None)
        else:
            return None
    return value


def all_simulated(table: pd.DataFrame) -> pd.Series:
    """True on rows from simulated devices; a row that does not say goes with most."""
    told = known(table, "simulated")
    default = bool(told) and sum(told) * 2 >= len(told)
    flags = [default if flag is None else flag for flag in cells_of(table, "simulated")]
    return pd.Series(flags, index=table.index, dtype=bool)


def _read(run: RunRecord, each: Column) -> Any:
    value = dig(run, each.path)
    if value is None:
        return None
    if each.kind in ("text", "time"):
        if isinstance(value, Mapping):
            value = ",".join(f"{key}={item}" for key, item in value.items())
        return clean(str(value))
    if each.kind == "flag":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if value - value != 0:
        return None
    return round(value) if each.kind in ("count", "bytes") else float(value)


def simulated_run(run: RunRecord) -> bool | None:
    """Whether the devices of a run share a host; ``None`` if it does not say."""
    said = dig(run, "asked.simulated")
    if isinstance(said, bool):
        return said
    target = dig(run, "asked.target")
    return True if str(target).startswith("cpu:") else None


def _per_device(row: Mapping[str, Any]) -> float | None:
    rate, devices = row["tokens_per_second"], row["devices"]
    return rate / devices if rate is not None and devices else None


def _collectives(run: RunRecord) -> dict[str, int | None]:
    """Bytes in all and by axes; ``None`` where one of the summands is unknown."""
    found = dig(run, "compiled.collectives")
    if not isinstance(found, list):
        return {}
    sums: dict[str, int | None] = {"collective_bytes": 0}
    for entry in found:
        entry = entry if isinstance(entry, Mapping) else {}
        amount = entry.get("bytes")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            amount = None
        for name in ("collective_bytes", f"collective_bytes_{axes_of(entry)}"):
            before = sums.get(name, 0)
            if amount is None or before is None:
                sums[name] = None
            else:
                sums[name] = before + round(amount)
    return sums


def axes_of(entry: Mapping[str, Any]) -> str:
    """The axes of one collective in one word: ``data+fsdp``."""
    axes = entry.get("axes")
    if not isinstance(axes, (list, tuple)) or not axes:
        return "unknown"
    return clean("+".join(ordered_axes({str(axis) for axis in axes})))


def _numbers(run: RunRecord, path: str, prefix: str) -> dict[str, Any]:
    found = dig(run, path)
    if not isinstance(found, Mapping):
        return {}
    names = {clean(str(key)): column(prefix + clean(str(key))) for key in found}
    read = {each.name: _read(run, each) for each in names.values()}
    return {name: value for name, value in read.items() if value is not None}


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every column in its order: the fixed ones, and at their place those found."""
    fixed = [each.name for each in COLUMNS]
    found = list(dict.fromkeys(name for row in rows for name in row))
    free = [name for name in found if name not in fixed]

    def starting(prefix: str) -> list[str]:
        return [name for name in free if name.startswith(prefix)]

    axes = ordered_axes(
        name.removeprefix("collective_bytes_") for name in starting("collective_bytes_")
    )
    after = {
        "tokenizer": starting("predicted_"),
        "collective_bytes": [f"collective_bytes_{axis}" for axis in axes],
        "held_out_bits_per_byte": starting("flops_per_token_") + starting("mfu_"),
    }
    # A run that was compiled and does not talk over an axis moves no bytes there.
    for row in rows:
        if "collective_bytes" in row:
            for name in after["collective_bytes"]:
                row.setdefault(name, 0)
    return [name for each in fixed for name in (each, *after.get(each, ()))]


def question(run: RunRecord) -> str:
    """What a run asked, but for how it was laid out; equal text, equal loss."""
    asked = run.asked if isinstance(run.asked, Mapping) else {}
    rest = {key: asked[key] for key in asked if key not in PLACEMENT}
    if isinstance(rest.get("config"), Mapping):
        config = rest["config"]
        rest["config"] = {key: config[key] for key in config if key not in PLACEMENT}
    return json.dumps(rest, sort_keys=True, default=str)


def _compare_losses(rows: list[dict[str, Any]], runs: Sequence[RunRecord]) -> None:
    """Compares each loss with the (lower) median of the runs that owe the same one.

    The median, because one broken layout must not become what others are held to.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, run in zip(rows, runs, strict=True):
        if row["status"] == "ok" and row["loss"] is not None:
            groups.setdefault(question(run), []).append(row)
    for group in groups.values():
        if len(group) < 2:
            continue
        ranked = sorted(group, key=lambda row: row["loss"])
        reference = ranked[(len(ranked) - 1) // 2]
        if reference["loss"] == 0:
            continue
        for row in group:
            gap = abs(row["loss"] - reference["loss"]) / abs(reference["loss"])
            row["loss_relative_difference"] = gap
            row["loss_reference"] = reference["id"]
