"""``explain --compiled``: where a compiled step's time and bytes go."""

from __future__ import annotations

import gzip
import json as json_
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaling_lab.cli.compile import answer, size

#: Rows of a table before the rest is summed up.
MOST = 16


def explain_compiled(config: Any, module: Path | None, json: bool, say: Console) -> int:
    """Prints the verdict on a config's compiled step, or on a module saved of it."""
    column = _column(config, module)
    if json:
        print(json_.dumps(column, indent=1))
    else:
        show_compiled(config, column, say)
    return 0 if column.get("status", "ok") == "ok" else 1


def _column(config: Any, module: Path | None) -> dict[str, Any]:
    if module is None:
        from scaling_lab.sweep import compile_run

        return answer(compile_run(config))
    from scaling_lab.compile import implied, read, unasked

    text = _text(module)
    column = read(text, config.placed_layout.mesh, config.target)
    column["unasked"] = unasked(column["collectives"], implied(config))
    return column


def _text(module: Path) -> str:
    data = module.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()


def show_compiled(config: Any, column: Mapping[str, Any], say: Console) -> None:
    """Tables: the sums, then by verb, by pass, by axis, buffers, what nobody asked."""
    say.print(
        f"{config.family} {config.size} compiled for {config.target}, layout "
        f"{config.layout.name}, batch {config.batch} × {config.length}",
        soft_wrap=True,
    )
    if column.get("status", "ok") != "ok":
        say.print(f"{column['status']}: {column['reason']}", markup=False)
    for line in _sums(column):
        say.print(line, markup=False)
    for title, key in (("verb", "by_verb"), ("pass", "by_pass"), ("axis", "by_axis")):
        if column.get(key):
            say.print()
            say.print(_shares(title, column[key]))
    _buffers(column, say)
    _unasked(column, say)


def _sums(column: Mapping[str, Any]) -> list[str]:
    lines = []
    if column.get("step_seconds") is not None:
        parts = [f"{milliseconds(column['modelled_seconds'])} priced by us"]
        if column.get("scheduled_seconds") is not None:
            own = milliseconds(column["scheduled_seconds"])
            parts.insert(0, f"{own} by the compiler's own estimates")
        step = milliseconds(column["step_seconds"])
        lines.append(f"step  {step}: {' + '.join(parts)}")
        lines.append(
            f"communication  {milliseconds(column['exposed_seconds'])} exposed, "
            f"{milliseconds(column['hidden_seconds'])} hidden"
        )
    if column.get("flops"):
        lines.append(f"products  {column['flops'] / 1e12:,.2f} TFLOP a device")
    if column.get("needed_bytes") is not None:
        verdict = {True: "fits", False: "does not fit", None: "memory unknown"}
        lines.append(
            f"memory  {size(column['needed_bytes'])} needed of "
            f"{size(column['hbm_bytes'])} a device: {verdict[column['fits']]}"
        )
    if column.get("trip_counts_known") is False:
        lines.append("some loop's trips could not be read and count as one")
    return lines


def _shares(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    headings = ("time", "exposed", "hidden", "TFLOP", "bytes moved")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in list(rows.items())[:MOST]:
        table.add_row(
            name,
            *(milliseconds(row[key]) for key in _SECONDS),
            f"{row['flops'] / 1e12:,.2f}" if row["flops"] else "",
            size(row["collective_bytes"]) if row["collective_bytes"] else "",
        )
    return table


_SECONDS = ("seconds", "exposed_seconds", "hidden_seconds")


def milliseconds(seconds: float | None) -> str:
    """Seconds as people read a step's; nothing of ``None``."""
    return "" if seconds is None else f"{seconds * 1e3:,.2f} ms"


def _buffers(column: Mapping[str, Any], say: Console) -> None:
    rows = column.get("largest_buffers") or []
    if not rows:
        return
    say.print("\n[bold]largest buffers[/] when memory is fullest")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    for _ in range(3):
        table.add_column(overflow="fold")
    for row in rows:
        where = row.get("verb") or row.get("op_name") or ""
        passed = f"{where}, {row['pass']}" if row.get("pass") else where
        source = "/".join((row.get("source") or "").split("/")[-2:])
        table.add_row(size(row["bytes"]), row.get("shape") or "", passed, source)
    say.print(table)


def _unasked(column: Mapping[str, Any], say: Console) -> None:
    rows = column.get("unasked")
    if rows is None:
        return
    if not rows:
        say.print("\nnothing is resharded that the layout does not imply")
    for row in rows:
        say.print(
            f"nobody asked for: {row['kind']} over {'×'.join(row['axes'])} by "
            f"{row['verb']}, {size(row['unasked_bytes'])}",
            markup=False,
        )
