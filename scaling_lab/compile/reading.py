"""The verdict on a scheduled module: what it needs, what it moves, how long it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from scaling_lab.compile import _names, links, live, price
from scaling_lab.compile._clock import COLLECTIVE, COPY, Piece
from scaling_lab.compile._groups import within_slice
from scaling_lab.compile._module import Module
from scaling_lab.compile.schedule import Schedule
from scaling_lab.hardware import Target, parse_target

LARGEST = 12


def read(
    module_text: str,
    mesh_axes: Mapping[str, int],
    target: Target | str | None = None,
    efficiencies: price.Efficiencies | None = None,
) -> dict[str, Any]:
    """Everything that is read from the text of a scheduled module, as plain JSON.

    Args:
      module_text: ``compiled.as_text()``.
      mesh_axes: axis name to size, in the order of the mesh's device array.
      target: the machine it was compiled for; without one, or with one whose speed
        nobody claims, there are no seconds.
      efficiencies: instead of the chip's own of `price.FITTED`.

    Returns:
      Of one device and step:

      * ``flops``: products and fused attention, trips counted.
      * ``scheduled_seconds``: what the compiler's own estimates say (`None` where it
        makes none, as on a GPU); ``modelled_seconds``: what we priced and the step
        waits for; ``step_seconds``: both.
      * ``exposed_seconds``, ``hidden_seconds``: communication that the step waits
        for, and that something covers; ``copy_seconds``: waiting for memory.
      * ``collectives``: kind, axes, count, bytes, link, loop, overlapped, seconds
        (alone), exposed_seconds, verb, pass, source.
      * ``by_verb``, ``by_pass``, ``by_axis``: where that goes.
      * ``largest_buffers`` of the fullest moment, and ``live_bytes`` of all of them.
      * ``trip_counts_known``: false where a loop's trips had to be assumed.

    Raises:
      ValueError: not a module, or the mesh is not the one it was compiled for.
    """
    target = parse_target(target) if isinstance(target, str) else target
    module = Module(module_text)
    inner = within_slice(module_text, mesh_axes)
    target = target or Target(None)
    facts = _facts(target, efficiencies)
    names, joined = _names.Names(module), links.of_axes(mesh_axes, target)
    schedule = Schedule(module, (inner, mesh_axes), joined, facts, names)
    pieces = schedule.pieces
    moves = [piece for piece in pieces if piece.what == COLLECTIVE]
    fullest = live.peak(module, names, module_text.partition("\n")[0])
    return {
        **_seconds(pieces, facts),
        "flops": sum(piece.flops * piece.count for piece in pieces),
        "collectives": _collectives(moves, schedule, facts is not None),
        "by_verb": _by(pieces, lambda piece: verb(piece), facts),
        "by_pass": _by(pieces, lambda piece: _names.pass_of(piece.op_name), facts),
        "by_axis": _by(moves, lambda piece: "×".join(piece.axes), facts),
        "live_bytes": fullest.bytes,
        "largest_buffers": [_buffer(each) for each in fullest.largest(LARGEST)],
        "trip_counts_known": all(piece.known for piece in pieces),
    }


def verb(piece: Piece) -> str:
    """The verb that a piece is of, or `_names.OTHER`."""
    return _names.verb_of(piece.op_name) or _names.OTHER


def _facts(
    target: Target, efficiencies: price.Efficiencies | None
) -> tuple[price.Physics, price.Efficiencies] | None:
    chip = target.chip
    if chip is None or not chip.flops_per_second:
        return None
    return price.physics(chip), efficiencies or price.efficiencies(chip)


def _seconds(pieces: Iterable[Piece], facts: Any) -> dict[str, float | None]:
    """The sums; exposed and hidden are of communication, copies are of memory."""
    names = ("scheduled", "modelled", "step", "exposed", "hidden", "copy")
    if facts is None:
        return {f"{name}_seconds": None for name in names}
    total = dict.fromkeys(names, 0.0)
    estimated = False
    for piece in pieces:
        estimated = estimated or piece.scheduled_seconds is not None
        total["scheduled"] += (piece.scheduled_seconds or 0.0) * piece.count
        total["modelled"] += piece.modelled_seconds * piece.count
        if piece.what == COLLECTIVE:
            total["exposed"] += piece.modelled_seconds * piece.count
            total["hidden"] += piece.hidden_seconds * piece.count
        elif piece.what == COPY:
            total["copy"] += piece.modelled_seconds * piece.count
    total["step"] = total["scheduled"] + total["modelled"]
    found: dict[str, float | None] = {f"{n}_seconds": total[n] for n in names}
    if not estimated:
        found["scheduled_seconds"] = None
    return found


def _collectives(
    moves: Iterable[Piece], schedule: Schedule, priced: bool
) -> list[dict[str, Any]]:
    """Rows merged where all but count, bytes and seconds agree; heaviest first."""
    rows: dict[tuple, dict[str, Any]] = {}
    for piece in moves:
        row = {
            "kind": piece.kind,
            "axes": list(piece.axes),
            "verb": verb(piece),
            "pass": _names.pass_of(piece.op_name),
            "link": schedule.link(piece.axes).kind,
            "loop": piece.loop,
            "overlapped": piece.overlapped,
        }
        key = (*map(str, row.values()),)
        row = rows.setdefault(
            key,
            row
            | {
                "count": 0,
                "bytes": 0,
                "seconds": 0.0 if priced else None,
                "exposed_seconds": 0.0 if priced else None,
                "source": piece.source,
            },
        )
        row["count"] += piece.count
        row["bytes"] += piece.bytes * piece.count
        if priced:
            whole = piece.modelled_seconds + piece.hidden_seconds
            row["seconds"] += whole * piece.count
            row["exposed_seconds"] += piece.modelled_seconds * piece.count
    return sorted(rows.values(), key=lambda row: (-row["bytes"], row["kind"]))


def _by(pieces: Iterable[Piece], key: Any, facts: Any) -> dict[str, dict[str, Any]]:
    """Where seconds, FLOPs and bytes go, the longest first."""
    rows: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        row = rows.setdefault(
            key(piece),
            {
                "seconds": 0.0 if facts else None,
                "exposed_seconds": 0.0 if facts else None,
                "hidden_seconds": 0.0 if facts else None,
                "flops": 0.0,
                "collective_bytes": 0,
            },
        )
        row["flops"] += piece.flops * piece.count
        moved = piece.what == COLLECTIVE
        row["collective_bytes"] += piece.bytes * piece.count if moved else 0
        if facts:
            row["seconds"] += piece.seconds * piece.count
            if moved:
                row["exposed_seconds"] += piece.modelled_seconds * piece.count
                row["hidden_seconds"] += piece.hidden_seconds * piece.count
    order = sorted(
        rows.items(),
        key=lambda pair: (-(pair[1]["seconds"] or 0), -pair[1]["collective_bytes"]),
    )
    return dict(order)


def _buffer(buffer: live.Buffer) -> dict[str, Any]:
    row = dataclasses.asdict(buffer)
    found = _names.verb_of(buffer.op_name)
    named = "['" in buffer.op_name
    row["verb"] = None if named else found or _names.OTHER
    row["pass"] = None if named else _names.pass_of(buffer.op_name)
    return row
