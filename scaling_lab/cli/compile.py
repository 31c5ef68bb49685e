"""``scaling-lab compile``: what the target's compiler says, without the target."""

from __future__ import annotations

import contextlib
import json as json_
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from scaling_lab.cli.grammar import Words, local_devices, words


def compile(
    run: Words,  # pyright: ignore[reportInvalidTypeForm]
    json: Path | None = None,
    module: Path | None = None,
    out: Path | None = None,
    timeout: float | None = None,
    fresh: bool = False,
    calibration: Path | None = None,
) -> int:
    """Compile one step for a machine that is not here, and say what it will cost.

    The real compiler of the target answers: bytes of one device against its memory,
    every collective, the time of the compiled schedule. Nothing is allocated.

        scaling-lab compile --size 8b --target tpu-v5p:4x4x4 --layout fsdp=64 \\
            --batch 128 --length 4096 --remat full --json step.json --module step.txt

    TPUs need `pip install 'scaling_lab[tpu-compile]'`, GPUs `[gpu-compile]`. A verdict
    is kept, and given again while config, code, libraries and compiler are the same.
    The exit code is 0 if the step compiled and fits, else 1.

    Args:
        run: What to compile, for what.
        json: Write the compiler's answer to this file, '-' for standard output.
        module: Write the scheduled HLO text to this file.
        out: Also add the record to this folder's records.jsonl.
        timeout: Seconds the compiler may take.
        fresh: Compile even if the verdict is known.
        calibration: Efficiencies of your own, as `calibrate` writes them.
    """
    from scaling_lab import record
    from scaling_lab.config import configure
    from scaling_lab.cost import calibrations
    from scaling_lab.data.store import write
    from scaling_lab.sweep import compile_run

    asked = words(run)
    eff = calibrations.read(calibration) if calibration else None
    config = configure(**asked, devices=local_devices(asked["target"]))
    say = Console(stderr=str(json) == "-", highlight=False)
    with _waiting(say) as watch:
        found = compile_run(
            config,
            module=module,
            timeout=timeout,
            fresh=fresh,
            watch=watch,
            calibration=eff,
        )
    if out is not None:
        record.append(out, found)
    text = json_.dumps(answer(found), indent=1)
    if str(json) == "-":
        print(text)
    elif json is not None:
        write(json, text + "\n")
    show(found, say)
    return 0 if found.status == "ok" else 1


def answer(found: Any) -> dict[str, Any]:
    """A record's ``compiled`` column as flat JSON, with how it ended and whence."""
    from scaling_lab.compile.judge import COLUMNS

    return {
        **dict.fromkeys(COLUMNS),
        **(found.compiled or {}),
        "status": found.status,
        "reason": found.reason,
        "id": found.id,
        "asked": found.asked,
        "predicted": found.predicted,
        "provenance": found.provenance,
    }


def show(found: Any, say: Console) -> None:
    """A short table of a compiled step, or why there is none."""
    asked, column = found.asked, found.compiled or {}
    say.print(
        f"[bold]{asked['family']} {asked['size']}[/] for {asked['target']}, layout "
        f"{asked['layout']}, batch {asked['batch']} × {asked['length']}, remat "
        f"{asked['remat']}, {asked['precision']}",
        soft_wrap=True,
    )
    if found.status != "ok":
        say.print(f"[red]{found.status}[/]", end=" ")
        say.print(str(found.reason), markup=False, soft_wrap=True)
    for row in _largest(found.status, column):
        words_ = (row["shape"], row.get("verb") or row["op_name"], row["source"])
        line = "  ".join([f"{size(row['bytes']):>12}", *filter(None, words_)])
        say.print(line, markup=False, soft_wrap=True)
    if not column:
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name in ("argument", "output", "temporary", "peak", "hbm"):
        table.add_row(f"{name} bytes a device", size(column.get(f"{name}_bytes")))
    seconds = column.get("step_seconds")
    table.add_row("step seconds", "not priced" if seconds is None else f"{seconds:.4g}")
    spent = column.get("compile_seconds")
    known = " (from the cache)" if column.get("cache_hit") else ""
    table.add_row("compile seconds", f"{spent:.1f}{known}" if spent else "")
    say.print(table)
    _show_collectives(column, say)


def _largest(status: str, column: dict[str, Any]) -> list[dict[str, Any]]:
    """The buffers to show: where memory was the trouble, those it went to."""
    return column.get("largest_buffers", [])[:6] if status == "oom" else []


def _show_collectives(column: dict[str, Any], say: Console) -> None:
    rows: dict[tuple[str, str, str], list[int]] = {}
    for row in column.get("collectives") or []:
        over = "×".join(row["axes"])
        sums = rows.setdefault((row["kind"], over, row.get("link") or ""), [0, 0])
        sums[0] += row["count"]
        sums[1] += row["bytes"]
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("collective", "over", "network"):
        table.add_column(heading)
    for heading in ("times", "bytes a device"):
        table.add_column(heading, justify="right")
    for words_, (count, moved) in sorted(rows.items(), key=lambda row: -row[1][1]):
        table.add_row(*words_, f"{count:,}", size(moved))
    say.print()
    say.print(table)


def size(count: float | None) -> str:
    """Bytes as people read them; ``unknown`` of ``None``."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


@contextlib.contextmanager
def _waiting(say: Console) -> Iterator[Any]:
    """A spinner with the time spent; on a pipe, one line for each thing begun."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=say,
        transient=True,
        disable=not say.is_terminal,
    )
    task = bar.add_task("starting", total=None)

    def watch(event: str, config: Any, facts: dict[str, Any]) -> None:
        del facts
        words = {"start": "starting", "kept": "known from before"}.get(event, event)
        bar.update(task, description=f"{words} for {config.target}")
        if not say.is_terminal:
            say.print(f"{words} for {config.target}")

    with bar:
        yield watch
