"""From a file, a folder of records or a DataFrame to the points of a fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from scaling_lab.studies.fitting.columns import flag, guess, missing, unit_in
from scaling_lab.studies.fitting.options import Options, pairs_of
from scaling_lab.studies.fitting.reading import (
    HELD_OUT,
    ROW,
    filtered,
    holds_numbers,
    numeric,
    read,
)
from scaling_lab.studies.law import ROLES, Array, Law
from scaling_lab.studies.plain import column_of


@dataclasses.dataclass(frozen=True)
class Points:
    """The points of a fit.

    Attributes:
      columns: numbers by role.
      y: what the law predicts. weight: of each point.
      rows: each point's row in the table, from 0.
      convention: what the columns count, in words, by role.
      notes: what was guessed, left out or found odd.
    """

    columns: dict[str, Array]
    y: Array
    weight: Array
    rows: Array
    convention: dict[str, str]
    notes: tuple[str, ...] = ()

    def keep(self, mask: Array, note: str | None = None) -> Points:
        """Some of the points."""
        return dataclasses.replace(
            self,
            columns={role: values[mask] for role, values in self.columns.items()},
            y=self.y[mask],
            weight=self.weight[mask],
            rows=self.rows[mask],
            notes=(*self.notes, *([note] if note else [])),
        )

    def __len__(self) -> int:
        return len(self.y)


def points_of(data: Any, law: Law, options: Options) -> Points:
    """The points of a table: columns found, units applied, bad rows told and left out.

    Raises:
      ValueError: a column is missing or ambiguous, or a filter is wrong.
    """
    table, ours = read(data)
    notes = []
    table = table.assign(**{ROW: np.arange(len(table))})
    for text in options.where:
        table = filtered(table, text)
    chosen = _choose(table, law, options, notes, ours)
    scale = options.numbers("scale")
    if law.response in scale:
        scale["y"] = scale.pop(law.response)
    for role in scale:
        if role not in chosen:
            raise ValueError(
                f"scale {role}: no such column in this fit; have {list(chosen)}"
            )
    numbers, convention = {}, {}
    for role, name in chosen.items():
        size = scale.get(role, unit_in(name, role))
        numbers[role] = numeric(column_of(table, name), name) * size
        unit = f" × {size:g}" if size != 1 else ""
        convention[role] = f"column {name!r}{unit}"
        if size != 1 and role not in scale:
            notes.append(f"{name!r} was read as {ROLES.get(role, role)} / {size:g}")
    if ours:
        convention["y"] += (
            "; bits per byte of held-out text"
            if HELD_OUT not in table
            else "; of the last training step"
        )
    _derive(numbers, convention, law)
    notes += _mixed(table, chosen)
    weight = _weights(table, options, convention)
    points = Points(
        {role: x for role, x in numbers.items() if role != "y"},
        numbers["y"],
        weight,
        table[ROW].to_numpy(),
        convention,
        tuple(notes),
    )
    return _cleaned(points, options)


def _choose(
    table: pd.DataFrame, law: Law, options: Options, notes: list[str], ours: bool
) -> dict[str, str]:
    """The column of every role that the law needs or could use; ``y``: predicted.

    Of our own records compute is 6 N D unless a column is named: what they hold is
    FLOPs of one token, by several conventions.
    """
    there = [str(name) for name in table.columns if name != ROW]
    asked = _asked(law, options)
    wanted = {"y", *law.needs, *asked} - {"ratio"}
    if "x" not in law.needs:
        wanted |= {"n", "d", "c"}
    if law.prepare is not None:
        wanted.add("judged")
    chosen: dict[str, str] = {}
    for role in [role for role in ROLES if role in wanted]:
        called = law.response if role == "y" else role
        if role in asked:
            if asked[role] not in there:
                raise missing(called, there, asked[role])
            chosen[role] = asked[role]
            continue
        if ours and role == "c":
            continue
        taken = {*chosen.values(), *asked.values()}
        left = [x for x in there if x not in taken and holds_numbers(table, x)]
        name = guess(called, left)
        if name is not None:
            chosen[role] = name
            notes.append(f"{ROLES[called]}: column {name!r}, by its name")
    have = set(chosen)
    if len(have & {"n", "d", "c"}) >= 2:
        have |= {"n", "d", "c", "ratio"}
    for role in (*law.needs, "y"):
        if role not in have:
            raise missing(law.response if role == "y" else role, there)
    return chosen


def _asked(law: Law, options: Options) -> dict[str, str]:
    """The columns that were named, by role."""
    asked = pairs_of(options.column, "column")
    for role in ("n", "d", "c", "loss"):
        name = getattr(options, f"{role}_column")
        if name is not None:
            asked[role] = name
    unknown = [role for role in asked if role not in ROLES]
    if unknown:
        raise ValueError(f"column {unknown[0]}=…: roles are {', '.join(ROLES)}")
    if "loss" in asked:
        asked["judged" if law.prepare is not None else "y"] = asked.pop("loss")
    if law.response in asked:
        asked["y"] = asked.pop(law.response)
    for role, name in asked.items():
        other = next(each for each, same in asked.items() if same == name)
        if other != role:
            both = " and ".join(flag(each) for each in (other, role))
            raise ValueError(f"column {name!r} is named twice: {both}")
    return asked


def _mixed(table: pd.DataFrame, chosen: dict[str, str]) -> list[str]:
    """Columns of words that tell several studies in one table apart."""
    told = []
    for name in table.columns:
        if name in chosen.values() or table[name].dtype.kind in "ifub":
            continue
        kinds = table[name].dropna().astype(str).unique()
        if 1 < len(kinds) <= min(20, len(table) // 5):
            told.append(
                f"{name!r} has {len(kinds)} values ({', '.join(kinds[:4])}"
                f"{' …' if len(kinds) > 4 else ''}), all fitted together; "
                f"--where {name}={kinds[0]} takes one"
            )
    return told


def _derive(numbers: dict[str, Array], convention: dict[str, str], law: Law) -> None:
    """C = 6 N D supplies whichever of the three is not there."""
    with np.errstate(all="ignore"):
        if "c" not in numbers and {"n", "d"} <= set(numbers):
            numbers["c"] = 6 * numbers["n"] * numbers["d"]
            convention["c"] = "6 N D"
        elif "d" not in numbers and {"n", "c"} <= set(numbers):
            numbers["d"] = numbers["c"] / (6 * numbers["n"])
            convention["d"] = "C / (6 N)"
        elif "n" not in numbers and {"d", "c"} <= set(numbers):
            numbers["n"] = numbers["c"] / (6 * numbers["d"])
            convention["n"] = "C / (6 D)"
        if "ratio" in law.needs:
            numbers["ratio"] = numbers["d"] / numbers["n"]
            convention["ratio"] = "D / N"


def _weights(table: pd.DataFrame, options: Options, convention: dict) -> Array:
    name = options.weight_column
    if name is None:
        return np.ones(len(table))
    kind, sign, rest = name.partition(":")
    wanted = rest if sign and kind == "sigma" else name
    if wanted not in table:
        raise missing("weight", [c for c in table.columns if c != ROW], wanted)
    values = numeric(column_of(table, wanted), wanted)
    if (values <= 0).any():
        raise ValueError(f"weights of {wanted!r} must be positive")
    convention["weight"] = f"1 / {wanted}²" if wanted != name else wanted
    return 1 / values**2 if wanted != name else values


def _cleaned(points: Points, options: Options) -> Points:
    """Without rows that lack a number or repeat another (if asked), told."""
    table = np.column_stack([*points.columns.values(), points.y, points.weight])
    whole = np.asarray(np.isfinite(table).all(1))
    if not whole.all():
        note = f"{(~whole).sum()} rows lack a number, left out: {_rows(points, ~whole)}"
        points = points.keep(whole, note)
    if not len(points):
        raise ValueError("no row has a number in every column of the law")
    table = np.column_stack([*points.columns.values(), points.y])
    _, first = np.unique(table, axis=0, return_index=True)
    again = np.ones(len(points), bool)
    again[first] = False
    if again.any():
        drop = options.duplicates == "drop"
        told = "left out" if drop else "kept (--duplicates drop leaves them out)"
        note = f"{again.sum()} rows repeat another, {told}: {_rows(points, again)}"
        points = points.keep(~again if drop else np.ones(len(points), bool), note)
    return points


def _rows(points: Points, mask: Array, most: int = 6) -> str:
    found = [str(row) for row in points.rows[mask][:most]]
    return ", ".join(found) + (" …" if mask.sum() > most else "")
