"""Tables from files, folders of records and DataFrames."""

from __future__ import annotations

import io
import json
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling_lab.record import FILE_NAME
from scaling_lab.studies.fitting.columns import missing
from scaling_lab.studies.law import Array
from scaling_lab.studies.plain import column_of, keep, with_status
from scaling_lab.studies.rows import frame

#: Each row's place in the table it came from; no column of a file is called so.
ROW = "\0row"
PER_TOKEN = "flops_per_token_"
HELD_OUT = "held_out_bits_per_byte"
#: A number, its thousands apart or not, and what it is counted in.
_TEXT = re.compile(
    r"\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?(?:[eE][-+]?\d+)?)"
    r"\s*([kKmMbBgGtT]?)\s*"
)
_SUFFIX = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SIGNS = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def read(data: Any) -> tuple[pd.DataFrame, bool]:
    """The table, and whether it is one of our records.

    Args:
      data: a DataFrame; a .csv, .tsv, .json, .jsonl or .parquet file; a folder of
        records or its records.jsonl.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: another ending, or no rows.
    """
    if isinstance(data, pd.DataFrame):
        return data.reset_index(drop=True), False
    path = Path(data)
    if path.is_dir() or path.name == FILE_NAME or _is_records(path):
        return _records(path), True
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a table or a folder of records"
        )
    readers = {
        ".csv": _separated,
        ".tsv": _separated,
        ".json": pd.read_json,
        ".jsonl": lambda p: pd.read_json(p, lines=True),
        ".parquet": pd.read_parquet,
    }
    ending = path.suffix.lower()
    if ending not in readers:
        raise ValueError(
            f"cannot read {path}: {ending or 'no ending'} is none of "
            f"{', '.join(readers)}, nor is it a folder of records"
        )
    try:
        found = readers[ending](path)
    except ValueError as error:  # also another encoding's, and pandas' own
        raise ValueError(f"cannot read {path} as {ending}: {error}") from None
    if found.empty:
        raise ValueError(f"{path} has no rows")
    return found, False


def _separated(path: Path) -> pd.DataFrame:
    """A table of text, by the tab or the separator that its first line has most of.

    Where that is a semicolon, commas are points of decimals unless points are.
    """
    text = path.read_text("utf-8-sig")
    first = next((line for line in text.splitlines() if line.strip()), "")
    plain = re.sub(r'"[^"]*"', "", first)
    separator = "\t" if "\t" in plain else max(",;|", key=plain.count)
    points = separator != ";" or re.search(r"\d\.\d", text)
    # A separator at the end of every row makes no column of the first one's names.
    return pd.read_csv(
        io.StringIO(text),
        sep=separator,
        decimal="." if points else ",",
        index_col=False,
    )


def _is_records(path: Path) -> bool:
    if path.suffix != ".jsonl" or not path.exists():
        return False
    with path.open() as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and {"id", "status", "asked"} <= set(first)


def _records(path: Path) -> pd.DataFrame:
    """Runs that ended well, with tokens and the loss on text that was held out."""
    found = with_status(frame(path), True).reset_index(drop=True)
    if found.empty:
        raise ValueError(f"no run in {path} ended well: nothing to fit")
    # What laws call a batch is counted in tokens; ours is in sequences.
    found = found.rename(columns={"batch": "sequences"})
    found["tokens"] = found["steps"] * found["tokens_per_step"]
    for name in [str(each) for each in found if str(each).startswith(PER_TOKEN)]:
        found["flops_" + name.removeprefix(PER_TOKEN)] = found[name] * found["tokens"]
    if column_of(found, HELD_OUT).notna().all():
        # The loss of the last training batch is another, noisier one.
        del found["loss"]
        found["loss"] = found.pop(HELD_OUT)
    return found


def numeric(column: pd.Series, name: str) -> Array:
    """Numbers, ``1.4B`` and ``70M`` among them; what is none is NaN.

    Raises:
      ValueError: none of the column is a number.
    """
    cells = column.astype(object).where(column.notna(), None).tolist()
    values = np.array([np.nan if cell is None else _number(cell) for cell in cells])
    if np.isnan(values).all() and len(values):
        raise ValueError(
            f"column {name!r} holds no numbers (first: {column.iloc[0]!r})"
        )
    return values


def _number(cell: Any) -> float:
    if isinstance(cell, (int, float)):
        return float(cell)
    match = _TEXT.fullmatch(str(cell))
    try:
        number = float(match[1].replace(",", "")) if match else np.nan
    except ValueError:  # no digit
        return np.nan
    return number * _SUFFIX.get(match[2].lower(), 1.0) if match else np.nan


def holds_numbers(table: pd.DataFrame, name: str) -> bool:
    """Whether a column could be counted with."""
    try:
        return bool(np.isfinite(numeric(column_of(table, name), name)).any())
    except ValueError:
        return False


def filtered(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows that one filter lets through.

    Raises:
      ValueError: no such column, no operator, or no row is left.
    """
    match = re.fullmatch(r"\s*([^=!<>]+?)\s*(==|!=|>=|<=|=|>|<)\s*(.*?)\s*", text)
    if not match:
        raise ValueError(f"where {text!r} is not COLUMN OPERATOR VALUE, as dataset=c4")
    name, sign, value = match.groups()
    if name not in table:
        raise missing("filter", [c for c in table.columns if c != "\0row"], name)
    column = column_of(table, name)
    try:
        mask = _SIGNS[sign](numeric(column, name), float(value))
    except ValueError:
        if sign not in ("=", "==", "!="):
            raise ValueError(f"where {text!r}: {value!r} is not a number") from None
        mask = _SIGNS[sign](column.astype(str), value).to_numpy()
    if not mask.any():
        seen = ", ".join(str(each) for each in column.unique()[:8])
        raise ValueError(f"no row has {text}; {name} is {seen}")
    return keep(table, mask)
