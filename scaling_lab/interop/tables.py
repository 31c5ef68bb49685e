"""Tables of runs as records: what was asked as far as it is known, and the clock.

Nothing of a row is lost: every cell stands in the record under ``asked.imported``,
those that are understood also where our own runs have them.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scaling_lab.hardware import chip_for, parse_target, target_of
from scaling_lab.interop.headings import AXES, NUMBERS, TEXTS, spellings
from scaling_lab.record import RunRecord, digest

Cells = dict[str, str]
#: How exports call a run that ended well; anything else that is said is a failure.
FINISHED = ("", "ok", "finished", "completed", "success", "succeeded", "done")
_MISSING = ("", "nan", "none", "null", "na", "n/a", "-")
_STATUSES = {"oom": "oom", "out of memory": "oom", "timeout": "timeout"}


class Imported(NamedTuple):
    """Records of a table, and what could not be read of it, a line each."""

    records: list[RunRecord]
    complaints: list[str]
    #: Headings that mean nothing here; their cells are kept all the same.
    unknown: list[str]


def read_table(path: str | Path) -> Imported:
    """Reads a table of comma-separated runs, one a row.

    Raises:
      ValueError: no table, no rows, or nothing in it says how long a step took.
      OSError: no such file.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    rows = list(csv.DictReader(lines))
    headings = [name for name in (rows[0] if rows else {}) if name]
    known = _headings(headings)
    if not rows:
        raise ValueError(f"{path} has no rows; the first line names the columns")
    if not {"step_seconds", "tokens_per_second", "tokens_per_second_per_chip"} & {
        *known
    }:
        raise ValueError(
            f"{path} has no column that says how long a step took: name one "
            "step_seconds, or tokens_per_second_per_chip; it has "
            f"{', '.join(headings)}"
        )
    source = {"file": path.name, "digest": hashlib.sha256(data).hexdigest()[:16]}
    records, complaints = [], []
    for number, row in enumerate(rows, 2):
        cells = {k: v.strip() for k, v in row.items() if k and isinstance(v, str)}
        cells = {k: v for k, v in cells.items() if v.casefold() not in _MISSING}
        said = _Row(cells, known)
        records.append(_record(said, source | {"line": number}))
        complaints += [f"line {number}: {each}" for each in said.complaints]
    used = {heading for heading, _ in known.values()}
    return Imported(records, complaints, [h for h in headings if h not in used])


def _headings(headings: list[str]) -> dict[str, tuple[str, float]]:
    """Our name -> the column that holds it, and what to multiply by."""
    found: dict[str, tuple[str, float]] = {}
    wanted = {name: [(1.0, names)] for name, names in {**AXES, **TEXTS}.items()}
    wanted |= {name: list(ways) for name, ways in NUMBERS.items()}
    spelt = {heading: spellings(heading) for heading in headings}
    for name, ways in wanted.items():
        choices = [
            (position, names.index(word), heading, factor)
            for factor, names in ways
            for heading, words in spelt.items()
            for position, word in enumerate(words)
            if word in names
        ]
        if choices:
            _, _, heading, factor = min(choices, key=lambda choice: choice[:2])
            found[name] = (heading, factor)
    return found


class _Row:
    """One row's cells by our names, and what was wrong with them."""

    def __init__(self, cells: Cells, known: Mapping[str, tuple[str, float]]) -> None:
        self.cells, self.known = cells, known
        self.complaints: list[str] = []

    def text(self, name: str) -> str | None:
        """A word, or ``None``."""
        heading, _ = self.known.get(name, ("", 1.0))
        return self.cells.get(heading)

    def number(self, name: str) -> float | None:
        """A finite number in our unit, or ``None``."""
        cell, factor = self.text(name), self.known.get(name, ("", 1.0))[1]
        if cell is None:
            return None
        try:
            value = float(cell.rstrip("%").replace(",", "")) * factor
        except ValueError:
            value = float("nan")
        if value - value != 0:
            heading = self.known[name][0]
            self.complaints.append(f"{heading} is {cell!r}, which is no number")
            return None
        return value / 100 if cell.endswith("%") and factor == 1 else value

    def count(self, name: str) -> int | None:
        """A whole number, or ``None``."""
        value = self.number(name)
        return None if value is None else round(value)


def _record(row: _Row, source: dict[str, Any]) -> RunRecord:
    asked = _asked(row)
    measured = _measured(row, asked)
    state = (row.text("state") or "").casefold()
    status = "ok" if state in FINISHED else _STATUSES.get(state, "crashed")
    return RunRecord(
        id=digest({"imported": row.cells}),
        environment="imported",
        status=status,
        reason=None if status == "ok" else f"its table says: {row.text('state')}",
        asked=asked,
        measured=measured,
        provenance={
            "imported_from": source | {"run": row.text("run")},
            "source": row.text("source"),
            "started": row.text("started"),
        },
    )


def _asked(row: _Row) -> dict[str, Any]:
    mesh = {axis: row.count(axis) or 1 for axis in AXES}
    mesh = {axis: size for axis, size in mesh.items() if size > 1}
    length, tokens = row.count("length"), row.count("tokens_per_step")
    batch = row.count("batch")
    if batch is None and tokens and length:
        batch = round(tokens / length)
    if tokens is None and batch and length:
        tokens = batch * length
    target, devices = _target(row)
    return {
        "family": row.text("family"),
        "size": row.text("size"),
        "layout": ",".join(f"{axis}={size}" for axis, size in mesh.items()) or None,
        "mesh": mesh or None,
        "target": target,
        "simulated": False,
        "devices": devices,
        "batch": batch,
        "length": length,
        "tokens_per_step": tokens,
        "params": row.count("params"),
        "steps": row.count("steps"),
        "seed": row.count("seed"),
        "remat": row.text("remat"),
        "precision": row.text("precision"),
        "accumulate": row.count("accumulate"),
        "optimizer": row.text("optimizer"),
        "imported": row.cells,
    }


def _target(row: _Row) -> tuple[str | None, int | None]:
    """The machine in our words where we know it, else in the table's."""
    said, name, chips = row.text("target"), row.text("hardware"), row.count("chips")
    try:
        if said is not None:
            found = parse_target(said)
        elif name is not None and chips:
            driver = chip_for(name)  # as the device itself is called
            found = target_of(driver.name if driver else name.casefold(), chips)
        else:
            return name, chips
    except ValueError:
        words = said or f"{name} x {chips}"
        row.complaints.append(f"no target is called {words!r}; kept as it is written")
        return words, chips
    return found.text, found.devices


def _measured(row: _Row, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    seconds, tokens = row.number("step_seconds"), asked["tokens_per_step"]
    rate, each = (
        row.number("tokens_per_second"),
        row.number("tokens_per_second_per_chip"),
    )
    chips = row.count("chips")
    if rate is None and each is not None and chips:
        rate = each * chips
    if rate is None and seconds and tokens:
        rate = tokens / seconds
    if seconds is None and rate and tokens:
        seconds = tokens / rate
    found: dict[str, Any] = {
        "step_seconds": None if seconds is None else {"median": seconds},
        "tokens_per_second": rate,
        "peak_bytes": row.count("peak_bytes"),
    }
    loss, mfu = row.number("loss"), row.number("mfu")
    tflops = row.number("tflops_per_chip")
    if loss is not None:
        found["loss"] = {"final": loss}
    if mfu is not None:
        found["mfu"] = {"as_reported": mfu / 100 if mfu > 1.5 else mfu}
        found["mfu_convention"] = row.text("convention")
    if tflops is not None:
        found["tflops_per_chip"] = tflops
    said = [value for value in found.values() if value is not None]
    return found if said else None
