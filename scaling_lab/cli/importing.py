"""``scaling-lab records import``: tables from elsewhere as records."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

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
    fresh = [each for each in found.records if each.id not in there]
    for each in fresh:
        record.append(out, each)
        there.add(each.id)
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    say.print(f"{len(fresh)} runs imported: {record.file_of(out)}", markup=False)
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
