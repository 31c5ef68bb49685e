"""Predictions of a table of runs, in the columns of the published ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.predict import predict
from scaling_lab.cost.published import read_rows

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
_CHUNK = 1000


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
        for name, values in {
            "predicted_step_seconds": found.step_seconds,
            "predicted_tokens_per_second_per_chip": found.tokens_per_second_per_chip,
            "predicted_hbm_bytes": found.hbm_bytes,
            "predicted_mfu_causal": found.mfu_causal,
            "predicted_step_seconds_low": found.low_seconds,
            "predicted_step_seconds_high": found.high_seconds,
        }.items():
            columns[name][rows.index] = values
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
