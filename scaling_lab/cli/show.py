"""The verbs that only show: records, report, explain, layouts, models."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from scaling_lab.cli import importing
from scaling_lab.cli.compile import size
from scaling_lab.cli.compiled import explain_compiled
from scaling_lab.cli.grammar import Words, local_devices, words


def records(
    folder: Annotated[Path, tyro.conf.Positional],
    table: Annotated[Path | None, tyro.conf.Positional] = None,
    where: tuple[str, ...] = (),
    sort: str | None = None,
    descending: bool = False,
    columns: tuple[str, ...] = (),
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Show the records of a folder as a table.

        scaling-lab records runs/a --where status=ok "batch>=16" --sort peak_bytes

    With the word import, read a table of runs from elsewhere (a W&B export, published
    runs) into records:

        scaling-lab records import RUNS.csv --out runs/theirs

    Args:
        folder: What a sweep wrote to, or a records.jsonl; or the word import.
        table: After import, the table: comma-separated, one run a row.
        where: Filters, as layout=fsdp=8, status!=ok, "batch>=16".
        sort: Column to sort by.
        descending: Largest first.
        columns: Columns to show instead of the usual ones.
        out: Also write the table to a .csv, .parquet or .json file; of import, the
            folder of the records.
        json: Print rows as JSON.
    """
    from scaling_lab import studies

    if table is not None:
        if str(folder) != "import":
            raise ValueError(
                f"one folder at a time, not {folder} and {table}; to read a table of "
                "runs: scaling-lab records import FILE.csv --out DIR"
            )
        return importing.import_table(table, out)
    if str(folder) == "import" and not folder.exists():
        raise ValueError(
            "records import needs a table: scaling-lab records import F.csv"
        )

    frame = studies.select(studies.frame(folder), where, sort, descending)
    if out is not None:
        studies.write_table(frame, out)
        Console(stderr=True).print(f"{len(frame)} rows: {out}", soft_wrap=True)
    if json:
        print(frame.to_json(orient="records", indent=1))
    elif out is None:
        print(studies.table(frame, list(columns) or None))
    return 0


def report(
    folder: Annotated[Path, tyro.conf.Positional], out: Path | None = None
) -> int:
    """Write one self-contained HTML page about the records of a folder.

    Args:
        folder: What a sweep wrote to, or a records.jsonl.
        out: The page; default report.html beside the records.
    """
    from scaling_lab import studies

    print(studies.report(folder, out))
    return 0


def explain(
    run: Words,  # pyright: ignore[reportInvalidTypeForm]
    compiled: bool = False,
    module: Path | None = None,
    json: bool = False,
) -> int:
    """Say where every parameter, gradient, optimizer state and activation lives.

    For each: its dims with their mesh axes, bytes per device, and the collectives it
    implies. Nothing is allocated, so any size and any machine will do:

        scaling-lab explain --size 70b --target tpu-v5p:8x8x8 \\
            --layout fsdp=64,tensor=8 --batch 512 --length 4096

    With --compiled the target's compiler is asked instead, and what is said is where
    the time and the bytes of its schedule go, by verb and by mesh axis.

    Args:
        run: What to explain.
        compiled: Read the compiled step's schedule.
        module: Read it from this file (`compile --module` wrote it; .gz will do).
        json: Print JSON.
    """
    from scaling_lab import cost
    from scaling_lab.config import configure
    from scaling_lab.sweep.run import check_legal

    asked = words(run)
    config = configure(**asked, devices=local_devices(asked["target"]))
    check_legal(config)
    if compiled or module is not None:
        return explain_compiled(config, module, json, _console())
    explanation = cost.explain(config)
    if json:
        facts = {
            "params": cost.parameters(config),
            "flops_per_token": cost.per_token(config),
            "executed_flops_per_token": cost.executed_per_token(config),
            "target": config.target,
            "id": config.id,
        }
        print(json_.dumps({**facts, **explanation.to_json()}, indent=1))
    else:
        _print_explanation(config, explanation, cost.parameters(config))
    return 0


def _print_explanation(config: Any, explanation: Any, params: int) -> None:
    say = _console()
    say.print(
        f"{config.family} {config.size}: {params:,} parameters on {config.target}, "
        f"layout {explanation.layout}, batch {config.batch} × {config.length}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("what", "name", "shape", "lives as"):
        table.add_column(heading, overflow="fold")
    table.add_column("bytes a device", justify="right")
    table.add_column("implies", overflow="fold")
    for row in explanation.rows:
        implied = [f"{c.kind} over {'×'.join(c.axes)}" for c in row.collectives]
        shape = "×".join(map(str, row.shape)) or "scalar"
        table.add_row(
            row.what,
            row.name,
            shape,
            row.placement,
            size(row.bytes),
            ", ".join(implied),
        )
    say.print(table)
    say.print("\n[bold]bytes a device[/]")
    for what, count in explanation.bytes_by().items():
        say.print(f"  {what:12} {size(count):>12}")
    say.print("\n[bold]collectives in a step[/] (bytes of one device)")
    for item in explanation.collectives():
        axes = "×".join(item["axes"])
        say.print(f"  {item['kind']:18} over {axes:15} {size(item['bytes']):>12}")


def layouts(target: str = "cpu:8", json: bool = False) -> int:
    """List the named layouts with their tables, and the words of the grammar.

    Args:
        target: Machine to size them for.
        json: Print JSON.
    """
    from scaling_lab.hardware import parse_target
    from scaling_lab.layouts import grammar, names, parse

    devices = parse_target(target).devices or local_devices(target)
    found = {name: parse(name, devices) for name in names()}
    if json:
        print(
            json_.dumps({n: layout.to_json() for n, layout in found.items()}, indent=1)
        )
        return 0
    say = _console()
    for name, layout in found.items():
        about = (grammar.named(name).__doc__ or "").splitlines()[0]
        mesh = ",".join(f"{axis}={size}" for axis, size in layout.mesh.items())
        say.print(f"[bold]{name}[/]  {mesh}\n  {about}")
        for kind in ("params", "grads", "optimizer", "acts"):
            own = getattr(layout, kind)
            if own is not None:
                say.print(f"  {kind:9} {_table_text(own)}", markup=False)
    say.print("\n[bold]axes[/]       " + ", ".join(grammar.MEANING))
    for word, meaning in grammar.MODIFIERS.items():
        say.print(f"[bold]+{word}[/]  {meaning}")
    return 0


def _table_text(table: Any) -> str:
    parts = [
        f"{key}: {{{_table_text(value)}}}"
        if isinstance(value, dict)
        else f"{key}→{'×'.join(value) if isinstance(value, tuple) else value}"
        for key, value in table.items()
    ]
    return ", ".join(parts) or "everything whole"


def models(json: bool = False) -> int:
    """List the model families, their sizes and parameter counts.

    Args:
        json: Print JSON.
    """
    from scaling_lab import models as room

    rows = [
        {
            "family": family,
            "size": size,
            "params": room.family(family).parameter_count(config),
            **{k: v for k, v in vars(config).items() if len(k) == 1},
        }
        for family in room.families()
        for size, config in room.family(family).SIZES.items()
    ]
    if json:
        print(json_.dumps(rows, indent=1))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in rows[0]:
        right = heading not in ("family", "size")
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else v for v in row.values()))
    _console().print(table)
    return 0


def _console() -> Console:
    """Standard output; a pipe is as wide as the table, so that programs see one row."""
    say = Console(highlight=False)
    return say if say.is_terminal else Console(highlight=False, width=240)
