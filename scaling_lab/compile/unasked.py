"""Resharding that nobody asked for: moves that the layout's tables do not imply.

What a layout implies, `cost.traffic` says verb by verb. An all-gather, all-to-all or
permute of the compiled module beyond that is the partitioner's own. A reduction moves
nothing to where it was not wanted, so reductions are not judged; but they may be made
of a gather or of permutes, and then these are theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from scaling_lab import dims
from scaling_lab.config import RunConfig
from scaling_lab.cost import explain
from scaling_lab.cost.mechanisms import Implied

#: What one implied kind may have become.
_BECOMES = {
    "all-gather": ("all-gather", "collective-permute", "collective-broadcast"),
    "all-reduce": ("all-gather", "collective-permute"),
    "reduce-scatter": ("collective-permute",),
    "all-to-all": ("all-to-all", "ragged-all-to-all", "collective-permute"),
}
_MOVES = {kind for kinds in _BECOMES.values() for kind in kinds}
#: Padding; a gather over several axes may be made of several, each of its part; and a
#: ring that is passed around in both directions sends a part more than it must.
_PADDING, _IN_STEPS = 1.05, 1.5
#: Moves smaller than this share of all bytes moved are the index arithmetic's.
_NEGLIGIBLE = 0.005


def implied(config: RunConfig) -> dict[str, list[Implied]]:
    """What a layout implies, by the last word of the verb that it serves.

    What activations imply happens again where they are made again.
    """
    again = config.remat != "none"
    found: dict[str, list[Implied]] = {}
    for row in explain(config).rows:
        word = row.name.rpartition("/")[2]
        items = row.collectives
        if row.what in ("parameter", "gradient"):
            word = dims.stem(word)
        elif again:
            items = [dataclasses.replace(i, bytes=2 * i.bytes) for i in items]
        found.setdefault(word, []).extend(items)
    return found


def unasked(
    rows: Iterable[Mapping[str, Any]], allowed: Mapping[str, list[Implied]]
) -> list[dict[str, Any]]:
    """The moves that are not implied, the heaviest first.

    A verb's moves are judged against what it implies itself, and what is left over
    against what other verbs imply and did not use: where two share an operand, one
    gather serves both, and is named after either.

    Args:
      rows: of `read`'s ``collectives``: kind, axes, bytes, verb.
      allowed: what is implied, by the verb's last word (see `implied`).

    Returns:
      kind, axes, verb, bytes, and ``unasked_bytes``, those of them not implied.
    """
    rows = list(rows)
    least = _NEGLIGIBLE * sum(row["bytes"] for row in rows)
    left = [
        [word, item, (_IN_STEPS if len(item.axes) > 1 else _PADDING) * item.bytes]
        for word, items in allowed.items()
        for item in items
    ]
    merged: dict[tuple[str, tuple[str, ...], str], float] = {}
    for row in sorted(rows, key=lambda row: row["kind"] == "collective-permute"):
        if row["kind"] in _MOVES:
            key = (row["kind"], tuple(row["axes"]), row["verb"])
            merged[key] = merged.get(key, 0) + row["bytes"]
    over = {key: _spend(key, size, left, own=True) for key, size in merged.items()}
    over = {key: _spend(key, size, left, own=False) for key, size in over.items()}
    found = [
        {
            "kind": kind,
            "axes": list(axes),
            "verb": verb,
            "bytes": merged[kind, axes, verb],
            "unasked_bytes": round(size),
        }
        for (kind, axes, verb), size in over.items()
        if size > least
    ]
    return sorted(found, key=lambda row: -row["unasked_bytes"])


def _spend(key: tuple, size: float, left: list[list], *, own: bool) -> float:
    """What is left of a move's bytes when it has used up what allows it."""
    kind, axes, verb = key
    word = verb.rpartition("/")[2]
    steps = _IN_STEPS if kind == "collective-permute" else 1.0
    for budget in left:
        name, item, room = budget
        fits = kind in _BECOMES.get(item.kind, ()) and set(axes) <= set(item.axes)
        if fits and (name == word or not own):
            used = min(size / steps, room)
            budget[2] -= used
            size -= used * steps
    return size
