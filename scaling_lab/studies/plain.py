"""A DataFrame's rows and columns as plain Python, missing as ``None``."""

from __future__ import annotations

from typing import Any, cast

import pandas as pd


def keep(frame: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows where a mask holds; a missing answer is no."""
    flags = [flag is not None and not pd.isna(flag) and bool(flag) for flag in mask]
    return cast(pd.DataFrame, frame.loc[flags])


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column; all missing where there is none of that name."""
    if name not in frame:
        return pd.Series([None] * len(frame), index=frame.index, dtype=object)
    return cast(pd.Series, frame[name])


def cells_of(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column's cells in order."""
    column = column_of(frame, name).astype(object)
    return column.where(column.notna(), None).tolist()


def known(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column's cells that are not missing."""
    return [cell for cell in cells_of(frame, name) if cell is not None]


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every row by column name."""
    columns = [cells_of(frame, str(name)) for name in frame.columns]
    names = [str(name) for name in frame.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def having(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows in which a column is not missing."""
    return keep(frame, column_of(frame, name).notna())


def with_status(frame: pd.DataFrame, ok: bool) -> pd.DataFrame:
    """The rows that ended ok, or those that did not."""
    same = column_of(frame, "status") == "ok"
    return keep(frame, same if ok else ~same)
