"""``scaling-lab records import``: tables from elsewhere as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scaling_lab.record import RunRecord

#: Complaints that are told one by one.
TOLD = 10


def import_table(table: Path, out: Path | None) -> int:
    """Appends a table's runs to a folder's records, each once.

    Args:
      table: comma-separated, one run a row.
      out: the folder; default ``runs/`` and the table's name.
    """
    from scaling_lab import record
    from scaling_lab.interop import read_table

    found = read_table(table)
    out = out or Path("runs") / table.stem
    there = set()
    if record.file_of(out).exists():
        there = {known.id for known in record.read(out)}
    runs = _with_predictions(table, found.records)
    fresh = [each for each in runs if each.id not in there]
    for each in fresh:
        record.append(out, each)
        there.add(each.id)
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    priced = sum(each.predicted is not None for each in fresh)
    also = f", {priced} with a prediction" if priced else ""
    say.print(f"{len(fresh)} runs imported{also}: {record.file_of(out)}", markup=False)
    if len(fresh) < len(found.records):
        say.print(f"{len(found.records) - len(fresh)} were there already")
    for complaint in found.complaints[:TOLD]:
        say.print(f"  {complaint}", markup=False)
    if len(found.complaints) > TOLD:
        say.print(f"  … and {len(found.complaints) - TOLD} more")
    if found.unknown:
        kept = ", ".join(found.unknown)
        say.print(f"kept as they are (asked.imported): {kept}", markup=False)
    return 0


def _with_predictions(table: Path, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The records with what is predicted of each row that says enough for it.

    A table in other columns than those of published runs has no such row.
    """
    from scaling_lab.cost.predict import predict
    from scaling_lab.cost.published import read_rows
    from scaling_lab.cost.tables import read_table

    found = list(runs)
    try:
        rows = read_rows(read_table(table))
    except ValueError:
        return found
    if rows.points is None or len(rows.reasons) != len(found):
        return found
    said = predict(rows.points)
    for place, index in enumerate(rows.index):
        run = found[int(index)]
        found[int(index)] = dataclasses.replace(run, predicted=said.row(place))
    return found
