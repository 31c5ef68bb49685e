"""Calibrations as files: each efficiency with its value, its interval, its evidence."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling_lab.cost.efficiencies import PRIORS, Calibration

if TYPE_CHECKING:
    from scaling_lab.cost.fit import Fit

SCHEMA = 1
#: The efficiencies fitted on the published runs, as they come with the lab.
FROZEN = Path(__file__).with_name("efficiencies.json")
#: Half of an 80 % interval, in standard deviations.
_EIGHTY = 1.2816


@functools.cache
def frozen() -> Calibration:
    """The efficiencies fitted on the published runs."""
    return read(FROZEN)


def read(path: str | Path) -> Calibration:
    """A calibration from its file.

    Raises:
      ValueError: the file is no calibration, or of a newer schema.
      FileNotFoundError: there is none.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if data["schema"] > SCHEMA:
            raise ValueError(
                f"{path} has schema {data['schema']}, this version reads up to "
                f"{SCHEMA}; upgrade scaling_lab"
            )
        logs = {row["name"]: math.log(row["value"]) for row in data["efficiencies"]}
        width = float(data["half_width"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no calibration ({error!r}); `scaling-lab calibrate` writes one"
        ) from None
    for name in logs:
        if name.partition("@")[0] not in PRIORS:
            raise ValueError(
                f"{path}: no efficiency is called {name!r}; they are "
                f"{', '.join(PRIORS)}"
            )
    return Calibration(logs, width)


def write(
    path: str | Path, fit: Fit, width: float, made_from: str, rows: Sequence[str]
) -> None:
    """Writes a fit, whole or not at all.

    Args:
      width: half of an 80 % interval, in the logarithm (`fit.half_width`).
      made_from: where the rows come from, in words.
      rows: their names, in the order they were fitted in.
    """
    table = [_line(name, log, fit, rows) for name, log in fit.calibration.logs.items()]
    text = json.dumps(
        {
            "schema": SCHEMA,
            "made_from": made_from,
            "half_width": _digits(width),
            "rows": list(rows),
            "meaning": {name: prior.says for name, prior in PRIORS.items()},
            "efficiencies": [line for line in table if line is not None],
        },
        indent=1,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text + "\n", "utf-8")
    os.replace(unfinished, path)


def _line(name: str, log: float, fit: Fit, rows: Sequence[str]) -> dict[str, Any]:
    spread = _EIGHTY * fit.spreads[name]
    return {
        "name": name,
        "value": _digits(math.exp(log)),
        "low": _digits(math.exp(log - spread)),
        "high": _digits(math.exp(log + spread)),
        "rows": fit.rows[name],
    }


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
