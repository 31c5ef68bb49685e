"""Predictions of a table of runs, in the columns of the published ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.predict import predict
from scaling_lab.cost.published import COLUMNS, SURPLUS, read_rows

#: What a prediction adds to a table, in order.
ADDED = (
    "predicted_step_seconds",
    "predicted_tokens_per_second_per_chip",
    "predicted_hbm_bytes",
    "predicted_mfu_causal",
    "assumptions",
    "predicted_step_seconds_low",
    "predicted_step_seconds_high",
    "prediction_status",
    "prediction_reason",
)
#: What a prediction is compared with.
MEASURED = "step_seconds"
_CHUNK = 1000


def read_table(path: str | Path) -> pd.DataFrame:
    """A file of comma-separated values, every cell as it is written.

    Nothing is guessed: ``8`` stays ``8`` and a name of digits a name. What a line has
    beyond the heading is kept in a column `SURPLUS`, for its row to be reported.

    Raises:
      ValueError: the file is empty, no UTF-8, or no table.
      OSError: it cannot be opened.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        lines = [cells for cells in csv.reader(io.StringIO(text, "")) if cells]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} is "
            f"{error.object[error.start]:#04x}); save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise ValueError(
            f"{path} is no table of comma-separated values: {error}"
        ) from None
    if not lines:
        raise ValueError(f"{path} is empty: it needs a heading and a row for every run")
    heading = _headings(lines[0])
    rows = [line + [""] * (len(heading) - len(line)) for line in lines[1:]]
    table = pd.DataFrame(
        [row[: len(heading)] for row in rows], columns=heading, dtype=str
    )
    surplus = [",".join(row[len(heading) :]) for row in rows]
    return table.assign(**{SURPLUS: surplus}) if any(surplus) else table


def _headings(names: Sequence[str]) -> list[str]:
    """The names with spaces gone, a repeated one told apart by a number."""
    found: list[str] = []
    for name in (name.strip() for name in names):
        fresh, count = name, 0
        while fresh in found:
            count += 1
            fresh = f"{name}.{count}"
        found.append(fresh)
    return found


def unread(table: pd.DataFrame) -> list[str]:
    """Columns of a table that say nothing to a prediction, nor are its own."""
    known = {*COLUMNS, *ADDED, SURPLUS, MEASURED}
    return [name for name in table.columns if name not in known]


def predict_table(
    table: pd.DataFrame,
    calibration: Calibration | None = None,
    done: Callable[[int], None] = lambda rows: None,
) -> pd.DataFrame:
    """The table with `ADDED`; a row that cannot be read keeps its place and says why.

    Args:
      done: told how many rows are finished.

    Raises:
      ValueError: the table lacks a column that every row needs, or has an added one.
    """
    clash = [name for name in ADDED if name in table.columns]
    table = table.drop(columns=clash)
    parts = []
    for start in range(0, max(len(table), 1), _CHUNK):
        part = table.iloc[start : start + _CHUNK]
        parts.append(_predict(part, calibration))
        done(start + len(part))
    return pd.concat(parts)


def _predict(table: pd.DataFrame, calibration: Calibration | None) -> pd.DataFrame:
    rows = read_rows(table)
    columns = {name: np.full(len(table), np.nan) for name in ADDED[:4] + ADDED[5:7]}
    if rows.points is not None:
        found = predict(rows.points, calibration)
        finite = np.isfinite(found.step_seconds) & np.isfinite(found.hbm_bytes)
        for at in rows.index[~finite]:
            rows.reasons[at] = (
                f"{rows.labels[at]}: its numbers are so large that no step follows"
            )
        for name, values in {
            "predicted_step_seconds": found.step_seconds,
            "predicted_tokens_per_second_per_chip": found.tokens_per_second_per_chip,
            "predicted_hbm_bytes": found.hbm_bytes,
            "predicted_mfu_causal": found.mfu_causal,
            "predicted_step_seconds_low": found.low_seconds,
            "predicted_step_seconds_high": found.high_seconds,
        }.items():
            columns[name][rows.index] = np.where(finite, values, np.nan)
    added = pd.DataFrame(
        {
            **columns,
            "assumptions": rows.assumptions,
            "prediction_status": ["unread" if r else "ok" for r in rows.reasons],
            "prediction_reason": [r or "" for r in rows.reasons],
        },
        index=table.index,
    )
    return pd.concat([table, added[list(ADDED)]], axis=1)
