"""What runs have in common and what tells them apart, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.studies.columns import AXES, column, ordered_axes
from scaling_lab.studies.plain import keep, known, rows_of
from scaling_lab.studies.rows import all_simulated

#: What was asked, in the order people say it.
ASKED = (
    "family",
    "size",
    "params",
    "mask",
    "routing",
    "target",
    "devices",
    "layout",
    "batch",
    "length",
    "steps",
    "precision",
    "optimizer",
    "accumulate",
    "remat",
    "seed",
    "tokenizer",
    "data_digest",
)
#: What a figure sets apart by headings; the rest goes into a row's label.
HEADED = ("family", "size", "target", "devices", "batch", "length")


def common(frame: pd.DataFrame) -> list[str]:
    """The columns of `ASKED` in which no two rows differ and some row has a value."""
    return [name for name in ASKED if len(set(known(frame, name))) == 1]


def varying(frame: pd.DataFrame) -> list[str]:
    """The columns of `ASKED` in which rows differ, the layout first.

    One of two columns that tell the same story (devices and target, size and
    parameters, tokenizer and data) is enough.
    """
    found = [name for name in ASKED if len(set(known(frame, name))) > 1]
    for told, teller in (
        ("params", "size"),
        ("devices", "target"),
        ("tokenizer", "data_digest"),
    ):
        if teller in found and told in found:
            found.remove(told)
    # Parameters follow from the config; they are a result more than a question.
    found = [name for name in found if name not in ("layout", "params")]
    return ["layout", *found]


def phrase(name: str, value: object) -> str:
    """One asked value in a few words: ``batch 16``, ``33.6M parameters``."""
    if units.is_missing(value):
        return ""
    if name == "params":
        return f"{units.count(float(str(value)))} parameters"
    if name in ("steps", "devices"):
        return f"{value} {name if value != 1 else name[:-1]}"
    if name in ("family", "size", "target", "precision", "layout", "optimizer"):
        return str(value)
    if name == "tokenizer":
        return f"{value} tokenizer"
    if name == "data_digest":
        return f"data {str(value)[:12]}"
    return f"{column(name).heading} {value}"


def sentence(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """What these columns hold in the first row that has them, dot separated."""
    said = (phrase(name, next(iter(known(frame, name)), None)) for name in names)
    return " · ".join(text for text in said if text)


def labels(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """A label for every row from these columns; the id where they say too little."""
    rows = rows_of(frame)
    said = [[phrase(name, row.get(name)) for name in names] for row in rows]
    texts = [" · ".join(text for text in words if text) for words in said]
    if "layout" not in names:
        return texts
    # Runs may differ in what has no column, such as how layers are stacked.
    counts = Counter(texts)
    runs = [f"run {str(row['id'])[:8]}" for row in rows]
    return [
        text if text and counts[text] == 1 else " · ".join(filter(None, (text, run)))
        for text, run in zip(texts, runs, strict=True)
    ]


def parts(frame: pd.DataFrame) -> list[tuple[bool, pd.DataFrame]]:
    """(simulated, rows): real devices first; what may be ranked stays apart."""
    simulated = all_simulated(frame)
    found = [(False, keep(frame, ~simulated)), (True, keep(frame, simulated))]
    return [(flag, rows) for flag, rows in found if len(rows)]


def axis_columns(frame: pd.DataFrame) -> list[str]:
    """``collective_bytes_<axis>`` columns in which some row moves bytes."""
    prefix = "collective_bytes_"
    axes = [name.removeprefix(prefix) for name in frame if str(name).startswith(prefix)]
    names = [prefix + axis for axis in ordered_axes(axes)]
    return [name for name in names if any(known(frame, name))]


def axis_words(name: str) -> str:
    """``collective_bytes_data+fsdp -> data+fsdp``."""
    return name.removeprefix("collective_bytes_")


def axis_slot(axis: str, others: Sequence[str]) -> str:
    """The colour class of an axis: fixed for single axes, then by order."""
    if axis == "unknown":
        return "axis-unknown"
    if axis in AXES:
        return f"axis-{AXES.index(axis)}"
    combined = [each for each in others if each not in AXES]
    return f"axis-{len(AXES) + combined.index(axis) % 3}"


def tally(frame: pd.DataFrame) -> str:
    """``12 runs: 10 ok, 1 illegal, 1 oom``."""
    counts = Counter(known(frame, "status"))
    order = sorted(counts, key=lambda status: (status != "ok", status))
    runs = f"{len(frame)} run{'s' if len(frame) != 1 else ''}"
    return f"{runs}: " + ", ".join(f"{counts[status]} {status}" for status in order)
