"""The records table: for a terminal, and to a file."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.studies.columns import RANK_NOTHING, Column, column
from scaling_lab.studies.facts import (
    axis_columns,
    common,
    parts,
    sentence,
    tally,
    varying,
)
from scaling_lab.studies.filters import known_column
from scaling_lab.studies.markup import clean
from scaling_lab.studies.plain import cells_of, known, rows_of, with_status
from scaling_lab.studies.units import MISSING

WIDTH = 88
NUMERIC = ("count", "bytes", "seconds", "rate", "number", "fraction")


def table(frame: pd.DataFrame, columns: Sequence[str] | None = None) -> str:
    """Aligned text, one unit a column; failures below it with their reasons.

    Runs on simulated devices stand in a table of their own, which leads with peak
    bytes, collective bytes by axis and loss equality; speed comes last there, under
    ``simulated: do not rank``.

    Args:
      frame: what `frame` or `select` gave.
      columns: these columns and no others.

    Raises:
      ValueError: no such column.
    """
    for name in columns or ():
        known_column(frame.columns, name)
    if frame.empty:
        return "no run matches"
    blocks = [tally(frame)]
    for simulated, rows in parts(frame):
        names = list(columns) if columns else leading_columns(rows, simulated)
        shared = [name for name in common(rows) if name not in names]
        blocks.append("all: " + sentence(rows, shared) if shared else "")
        blocks.append(_grid(rows, names, simulated))
    if columns is None or "reason" not in columns:
        blocks.append(_failures(frame))
    return "\n".join(block for block in blocks if block)


def leading_columns(
    frame: pd.DataFrame, simulated: bool, in_full: bool = False
) -> list[str]:
    """The columns a table shows unasked, in order; those without a value left out.

    Args:
      frame: rows of one kind of device.
      simulated: whether speed ranks nothing and comes last.
      in_full: with the parts of the memory, the spread and the compile time too.
    """
    memory = ["peak_bytes", *(["argument_bytes", "temporary_bytes"] * in_full)]
    predicted = [name for name in frame if str(name).startswith("predicted_")]
    memory += ["compile_seconds"] * in_full
    compiled = [*memory, "collective_bytes", *axis_columns(frame)]
    measured = ["loss", "loss_relative_difference", "held_out_bits_per_byte"]
    measured = ["measured_peak_bytes", *measured, "expert_imbalance", "expert_dropped"]
    measured += ["expert_entropy"] * in_full
    spread = ["step_seconds_p5", "step_seconds_p95", "repeats"] * in_full
    mfu = [str(name) for name in frame if str(name).startswith("mfu_")]
    mfu = [*mfu, "hfu"] if in_full else mfu[:1]
    speed = ["step_seconds", *spread, "tokens_per_second", *mfu]
    measured = [*measured, *speed] if simulated else [*speed, *measured]
    asked = [*varying(frame), "status"]
    found = [*predicted, *compiled, *measured]
    return [name for name in asked if name in frame] + [
        str(name) for name in found if known(frame, str(name))
    ]


def level_of(each: Column, simulated: bool) -> str:
    """The heading a column stands under."""
    if simulated and each.is_speed:
        return RANK_NOTHING
    return "asked" if each.name == "status" else each.level


def cells(frame: pd.DataFrame, name: str) -> tuple[str, str, list[str]]:
    """(heading, unit, one text a row) of a column."""
    each = column(name)
    values = cells_of(frame, name)
    heading = each.heading
    if name == "loss_relative_difference":
        texts = [
            units.difference(
                row[name], row.get("precision"), row.get("loss_reference") == row["id"]
            )
            for row in rows_of(frame)
        ]
        return heading, "", texts
    if each.kind not in NUMERIC:
        texts = [units.human(value, each.kind) for value in values]
        return heading, "", [" ".join(text.split()) for text in texts]
    unit = units.unit_for(each.kind, known(frame, _unit_source(name)) or values)
    if name in ("seed", "batch", "length", "steps"):
        return heading, "", [MISSING if v is None else str(v) for v in values]
    return heading, unit.symbol, [units.in_unit(value, unit) for value in values]


def _unit_source(name: str) -> str:
    """The column whose unit this one shares, so that both can be compared."""
    if name.startswith("collective_bytes"):
        return "collective_bytes"
    if name.endswith("_bytes"):
        return "peak_bytes"
    return "step_seconds" if "step_seconds" in name else name


def write_table(frame: pd.DataFrame, path: str | Path) -> Path:
    """Writes the rows as they are (no units, no rounding) and returns the path.

    Args:
      frame: what `frame` or `select` gave.
      path: ends in ``.csv``, ``.json`` (a list of rows) or ``.parquet``.

    Raises:
      ValueError: another ending.
      ImportError: parquet without pyarrow.
    """
    path = Path(path)
    writers = {".csv": _csv, ".json": _json, ".parquet": _parquet}
    if path.suffix not in writers:
        raise ValueError(
            f"cannot write a table to {path}: {path.suffix or 'no ending'} is none of "
            f"{', '.join(writers)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writers[path.suffix](frame, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def _json(frame: pd.DataFrame, path: Path) -> None:
    # pandas' own writer rounds to 15 digits at most; this keeps every bit.
    rows = rows_of(frame)
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", "utf-8")


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "parquet needs pyarrow: pip install 'scaling-lab[parquet]', "
            "or write .csv or .json"
        ) from error
    frame.to_parquet(path, engine="pyarrow", index=False)


def _grid(frame: pd.DataFrame, names: Sequence[str], simulated: bool) -> str:
    """Levels, headings, units and rows under one another."""
    levels, body = [], []
    for name in names:
        heading, unit, texts = cells(frame, name)
        texts = [clean(text) for text in texts]
        level = level_of(column(name), simulated)
        begins = not levels or levels[-1][0] != level
        lines = [heading, unit, *texts]
        width = max(len(line) for line in lines)
        left = column(name).kind not in NUMERIC
        lines = [line.ljust(width) if left else line.rjust(width) for line in lines]
        levels.append((level, width, begins))
        body.append(lines)
    top, rows = _levels(levels)
    for index in range(len(body[0])):
        rows.append(
            "  ".join(
                (" " * pad) + lines[index] for lines, pad in zip(body, top, strict=True)
            ).rstrip()
        )
    if not rows[2]:
        del rows[2]
    rule = "─" * max(len(row) for row in rows)
    rows.insert(len(rows) - len(frame), rule)
    return "\n".join(row for row in rows if row) + "\n"


def _levels(levels: Sequence[tuple[str, int, bool]]) -> tuple[list[int], list[str]]:
    """The line of level names, and how far each column must move right for it."""
    pads, line, position = [0] * len(levels), "", 0
    for index, (level, width, begins) in enumerate(levels):
        position += 2 * (index > 0)
        if begins and level:
            missing = len(line) + 2 * bool(line) - position
            pads[index] = max(missing, 0)
            line = line.ljust(position + pads[index]) + level
        position += width + pads[index]
    return pads, [line]


def _failures(frame: pd.DataFrame) -> str:
    failed = rows_of(with_status(frame, False)) if "status" in frame else []
    if not failed:
        return ""
    lines = ["not ok:"]
    for row in failed:
        label = row.get("layout") or MISSING
        why = " ".join((row.get("reason") or "no reason was recorded").split())
        why = why if len(why) <= 300 else why[:300] + " …"
        text = clean(f"{label} · {row['status']}: {why}")
        lines.append(
            textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
        )
    return "\n".join(lines)
