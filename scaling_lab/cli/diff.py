"""``scaling-lab diff A B``: two layouts, or two runs, side by side."""

from __future__ import annotations

import dataclasses
import json as json_
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from scaling_lab.cli.compile import size
from scaling_lab.cli.compiled import milliseconds
from scaling_lab.cli.grammar import Words, local_devices, words

#: Figures of the compiled column that are compared, and of what.
_BYTES = ("argument", "output", "temporary", "peak", "needed")
_SECONDS = ("step", "scheduled", "modelled", "exposed", "hidden")


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two: what was asked, where its arrays live, what it costs.

    Attributes:
      name: as people gave it. asked: the words of the run.
      arrays: "what name" -> (placement, bytes of one device).
      figures: name -> number, bytes or seconds by the name's last word.
      collectives: (kind, axes) -> bytes of one device and step.
      compiled: whether the collectives are the compiler's, not the layout's.
    """

    name: str
    asked: dict[str, Any]
    arrays: dict[str, tuple[str, int]]
    figures: dict[str, float]
    collectives: dict[tuple[str, tuple[str, ...]], int]
    compiled: bool


def diff(
    a: Annotated[str, tyro.conf.Positional],
    b: Annotated[str, tyro.conf.Positional],
    run: Words,  # pyright: ignore[reportInvalidTypeForm]
    compiled: bool = False,
    json: bool = False,
) -> int:
    """Show how two layouts, or two runs, differ: sharding, bytes, collectives, time.

    Each side is a layout of the run that the flags describe, a file that
    `scaling-lab compile --json` wrote, or a record, as FOLDER#ID:

        scaling-lab diff fsdp=64 fsdp=16,tensor=4 --size 8b --target tpu-v5p:4x4x4
        scaling-lab diff before.json after.json

    Args:
        a: The first.
        b: The second.
        run: The run whose layouts are compared; its own --layout does not count.
        compiled: Compile layouts for the target instead of predicting.
        json: Print JSON.
    """
    asked = words(run)
    sides = [_side(text, asked, compiled) for text in (a, b)]
    rows = compare(*sides)
    if json:
        print(json_.dumps(rows, indent=1))
    else:
        say = Console(highlight=False)
        _show(sides, rows, say if say.is_terminal else Console(width=240))
    return 0


def _side(text: str, asked: dict[str, Any], compiled: bool) -> Side:
    """Reads what a person means by one side.

    Raises:
      ValueError: it is none of the three, or a record that is not there.
    """
    folder, mark, wanted = text.rpartition("#")
    if mark:
        return _of_record(text, _record(folder, wanted))
    if text.endswith(".json") and Path(text).exists():
        data = json_.loads(Path(text).read_text())
        if "asked" in data:
            return _of_record(text, data | {"compiled": data})
        if "mesh" not in data:
            raise ValueError(
                f"{text} is no answer of `scaling-lab compile --json` (it has no "
                "'asked') and no layout (it has no 'mesh')"
            )
    from scaling_lab.config import configure
    from scaling_lab.sweep import compile_run
    from scaling_lab.sweep.run import asked as in_words
    from scaling_lab.sweep.run import check_legal

    target = asked["target"]
    config = configure(**(asked | {"layout": text}), devices=local_devices(target))
    check_legal(config)
    column = compile_run(config).compiled if compiled else None
    return _of_config(text, config, column, in_words(config))


def _record(folder: str, wanted: str) -> dict[str, Any]:
    from scaling_lab import record

    found = record.latest(record.read(folder))
    chosen = [run for key, run in found.items() if key.startswith(wanted)]
    if len(chosen) != 1:
        known = ", ".join(list(found)[:8])
        few = "no record" if not chosen else f"{len(chosen)} records"
        raise ValueError(f"{few} of {folder} begin with {wanted!r}; there are {known}")
    return dataclasses.asdict(chosen[0])


def _of_record(name: str, data: Mapping[str, Any]) -> Side:
    from scaling_lab.config import RunConfig

    config = RunConfig.from_json(data["asked"]["config"])
    side = _of_config(name, config, data["compiled"], data["asked"])
    measured = (data.get("measured") or {}).get("step_seconds") or {}
    if measured.get("median") is not None:
        side.figures["measured step seconds"] = measured["median"]
    return side


def _of_config(
    name: str, config: Any, column: Mapping[str, Any] | None, asked: dict[str, Any]
) -> Side:
    from scaling_lab import cost

    explanation = cost.explain(config)
    arrays = {
        f"{row.what} {row.name}": (row.placement, row.bytes) for row in explanation.rows
    }
    figures: dict[str, float] = {
        f"predicted {what} bytes": size for what, size in explanation.bytes_by().items()
    }
    figures |= _predicted(config)
    moved = explanation.collectives()
    if column is not None:
        named = [f"{w}_bytes" for w in _BYTES] + [f"{w}_seconds" for w in _SECONDS]
        for key in (*named, "flops"):
            if column.get(key) is not None:
                figures[f"compiled {key.replace('_', ' ')}"] = column[key]
        moved = column.get("collectives") or []
    collectives: dict[tuple[str, tuple[str, ...]], int] = {}
    for row in moved:
        key = (row["kind"], tuple(row["axes"]))
        collectives[key] = collectives.get(key, 0) + row["bytes"]
    return Side(name, asked, arrays, figures, collectives, column is not None)


def _predicted(config: Any) -> dict[str, float]:
    """Predicted seconds and memory; nothing where no peak of the chip is known."""
    from scaling_lab.sweep.run import predicted

    priced = predicted(config)
    if priced["step_seconds"] is None:
        return {}
    return {
        "predicted step seconds": priced["step_seconds"],
        "predicted peak bytes": priced["hbm_bytes"],
        **{
            f"predicted {name} seconds": seconds
            for name, seconds in priced["seconds"].items()
            if seconds
        },
    }


def compare(a: Side, b: Side) -> dict[str, Any]:
    """What differs, as plain JSON: rows of ``a``, ``b`` and, of numbers, ``ratio``.

    Returns:
      ``asked``, ``sharding``, ``figures`` and ``collectives``; figures that only one
      side has have ``None`` for the other.
    """
    keys = [key for key in a.asked if key not in ("config", "layout", "data")]
    return {
        "a": a.name,
        "b": b.name,
        "asked": {
            key: {"a": a.asked[key], "b": b.asked.get(key)}
            for key in keys
            if a.asked[key] != b.asked.get(key)
        },
        "sharding": {
            name: {
                "a": None if one is None else one[0],
                "b": None if two is None else two[0],
                "a_bytes": None if one is None else one[1],
                "b_bytes": None if two is None else two[1],
            }
            for name, one, two in _pairs(a.arrays, b.arrays)
            if one != two
        },
        "figures": {
            name: _numbers(one, two) for name, one, two in _pairs(a.figures, b.figures)
        },
        "collectives": [
            {"kind": key[0], "axes": list(key[1])} | _numbers(one or 0, two or 0)
            for key, one, two in _pairs(a.collectives, b.collectives)
        ],
        "collectives_from": {"a": _whence(a), "b": _whence(b)},
    }


def _pairs(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> list[tuple[Any, Any, Any]]:
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])]


def _numbers(a: float | None, b: float | None) -> dict[str, float | None]:
    return {"a": a, "b": b, "ratio": b / a if a and b is not None else None}


def _whence(side: Side) -> str:
    return "compiled" if side.compiled else "implied by the layout"


def _show(sides: list[Side], rows: dict[str, Any], say: Console) -> None:
    for key, pair in rows["asked"].items():
        say.print(f"{key}: {pair['a']} → {pair['b']}", markup=False)
    sharding = _table("lives as", rows, "a device", "a device")
    for name, row in rows["sharding"].items():
        held = [size(row[k]) if row[k] is not None else "" for k in _HELD]
        sharding.add_row(name, row["a"] or "", row["b"] or "", *held)
    say.print(sharding)
    figures = _table("figure", rows, "ratio")
    for name, row in rows["figures"].items():
        figures.add_row(name, *(_text(name, row[k]) for k in "ab"), _ratio(row))
    say.print(figures)
    moved = _table("collective bytes", rows, "ratio")
    for row in rows["collectives"]:
        name = f"{row['kind']} over {'×'.join(row['axes'])}"
        moved.add_row(name, size(row["a"]), size(row["b"]), _ratio(row))
    say.print(moved)
    whence = [_whence(side) for side in sides]
    if len(set(whence)) > 1:
        say.print(f"collectives: {whence[0]} against {whence[1]}")


_HELD = ("a_bytes", "b_bytes")


def _table(first: str, rows: dict[str, Any], *more: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in (rows["a"], rows["b"], *more):
        table.add_column(name, justify="right", overflow="fold")
    return table


def _text(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.endswith("seconds"):
        return milliseconds(value)
    return f"{value / 1e12:,.2f} TFLOP" if name.endswith("flops") else size(value)


def _ratio(row: Mapping[str, float | None]) -> str:
    return "" if row["ratio"] is None else f"× {row['ratio']:.3g}"
