"""Choose and order rows: ``layout=fsdp=8``, ``status!=ok``, ``peak_bytes<=16MiB``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from scaling_lab.studies.columns import column
from scaling_lab.studies.plain import column_of, keep

_FILTER = re.compile(r"\s*([^=!<>]*?)\s*(==|!=|>=|<=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
}
_UNITS = {
    "bytes": {"": 1, "B": 1}
    | {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
    | {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    "seconds": {"": 1, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60},
    "fraction": {"": 1, "%": 0.01},
}


def select(
    frame: pd.DataFrame,
    filters: Sequence[str] = (),
    sort: str | None = None,
    descending: bool = False,
) -> pd.DataFrame:
    """The rows that pass every filter, ordered by one column.

    A filter is a column, one of ``= != < <= > >=`` and a value. The first operator
    counts, so ``layout=fsdp=8`` asks for the layout ``fsdp=8``. ``*`` in a text stands
    for anything, ``none`` for a missing value; bytes, seconds and fractions may carry
    a unit (``16MiB``, ``50ms``, ``40%``). Rows without a value pass no comparison but
    ``!=`` and sort last.

    Raises:
      ValueError: no such column, no operator, or a value of the wrong kind.
    """
    if isinstance(filters, str):
        filters = [filters]
    for text in filters:
        frame = keep(frame, _mask(frame, text))
    if sort is not None:
        known_column(frame.columns, sort)
        frame = frame.sort_values(
            sort, ascending=not descending, kind="stable", na_position="last"
        )
    return frame.reset_index(drop=True)


def known_column(columns: Iterable[str], name: str) -> str:
    """The name itself, if it is a column.

    Raises:
      ValueError: it is not; the message has the nearest ones.
    """
    names = [str(each) for each in columns]
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.4)
    near += [each for each in names if name and name in each and each not in near][:4]
    hint = f"nearest: {', '.join(near)}" if near else f"columns: {', '.join(names)}"
    raise ValueError(f"no column {name!r} in the records; {hint}")


def _mask(frame: pd.DataFrame, text: str) -> pd.Series:
    match = _FILTER.fullmatch(text)
    if not match or not match[1]:
        raise ValueError(
            f"filter {text!r} is not COLUMN OPERATOR VALUE; "
            "write for example status!=ok, batch>=16 or layout=fsdp=8"
        )
    name, sign, wanted = match[1], match[2], match[3]
    values = column_of(frame, known_column(frame.columns, name))
    kind = column(name).kind
    if sign in _COMPARE:
        if kind in ("text", "flag"):
            raise ValueError(
                f"filter {text!r}: {name} is a {kind}, which has no order; use = or !="
            )
        right = wanted if kind == "time" else _number(text, name, kind, wanted)
        return _COMPARE[sign](values, right).fillna(False).astype(bool)
    same = _same(values, text, name, kind, wanted).fillna(False).astype(bool)
    return ~same if sign == "!=" else same


def _same(values: pd.Series, text: str, name: str, kind: str, wanted: str) -> pd.Series:
    if wanted.lower() in ("", "none"):
        # ``remat=none`` is a word as well as a missing value.
        missing = values.isna()
        return missing | (values == wanted) if kind == "text" else missing
    if kind in ("text", "time"):
        if "*" not in wanted:
            return values == wanted
        pattern = ".*".join(re.escape(part) for part in wanted.split("*"))
        return values.str.fullmatch(pattern, flags=re.DOTALL)
    if kind == "flag":
        return values == _flag(text, name, wanted)
    return values == _number(text, name, kind, wanted)


def _flag(text: str, name: str, wanted: str) -> bool:
    word = wanted.lower()
    if word not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError(f"filter {text!r}: {name} is yes or no, not {wanted!r}")
    return word in ("true", "yes", "1")


def _number(text: str, name: str, kind: str, wanted: str) -> float:
    units = _UNITS.get(kind, {"": 1})
    match = re.fullmatch(r"([-+0-9._]+(?:[eE][-+]?\d+)?)\s*([^\d\s]*)", wanted)
    try:
        if match is None:
            raise ValueError(wanted)
        return float(match[1]) * units[match[2]]
    except (ValueError, KeyError):
        allowed = ", ".join(unit for unit in units if unit)
        with_unit = f" (units: {allowed})" if allowed else ""
        raise ValueError(
            f"filter {text!r}: {name} is a number and {wanted!r} is not one{with_unit}"
        ) from None
