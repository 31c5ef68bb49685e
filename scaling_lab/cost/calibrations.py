"""Calibrations as files: each efficiency with its value, its interval, its evidence."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling_lab.cost.efficiencies import PRIORS, Calibration
from scaling_lab.data import store

if TYPE_CHECKING:
    from scaling_lab.cost.calibrating import Calibrated
    from scaling_lab.cost.fit import Fit

#: 2: efficiencies of one chip's own may stand beside the others.
SCHEMA = 2
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
        logs, width = _logs(data), float(data["half_width"])
        own = {
            chip: Calibration(logs | _logs(part), float(part["half_width"]))
            for chip, part in data.get("own", {}).items()
        }
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no calibration ({error!r}); `scaling-lab calibrate` writes one"
        ) from None
    for name in {*logs, *(name for each in own.values() for name in each.logs)}:
        if name.partition("@")[0] not in PRIORS:
            raise ValueError(
                f"{path}: no efficiency is called {name!r}; they are "
                f"{', '.join(PRIORS)}"
            )
    return Calibration(logs, width, own=own)


def write(
    path: str | Path, fit: Fit, width: float, made_from: str, rows: Sequence[str]
) -> None:
    """Writes a fit, whole or not at all.

    Args:
      width: half of an 80 % interval, in the logarithm (`fit.half_width`).
      made_from: where the rows come from, in words.
      rows: their names, in the order they were fitted in.
    """
    part = _part(fit, fit.calibration, width, made_from, rows)
    meaning = {name: prior.says for name, prior in PRIORS.items()}
    _write(path, {"schema": SCHEMA, **part, "meaning": meaning})


def write_own(
    path: str | Path, found: Calibrated, made_from: str, start: Path = FROZEN
) -> None:
    """Writes what a calibration file says, and beside it a fit of some chips alone.

    Args:
      found: of records; its chips get efficiencies of their own.
      start: the file that the fit started from; all else in it is kept as it is.
    """
    data = json.loads(start.read_text("utf-8"))
    own = data.setdefault("own", {})
    for chip in found.chips:
        fitted = found.fit.calibration.own[chip]
        part = _part(found.fit, fitted, found.half_width, made_from, found.rows)
        lines = [*own.get(chip, {}).get("efficiencies", []), *part["efficiencies"]]
        lines = list({line["name"]: line for line in lines}.values())
        own[chip] = part | {"efficiencies": lines}
    _write(path, data | {"schema": SCHEMA})


def _logs(part: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: math.log(row["value"]) for row in part["efficiencies"]}


def _part(
    fit: Fit, fitted: Calibration, width: float, made_from: str, rows: Sequence[str]
) -> dict[str, Any]:
    return {
        "made_from": made_from,
        "half_width": _digits(width),
        "rows": list(rows),
        "efficiencies": [_line(name, fitted.logs[name], fit) for name in fit.spreads],
    }


def _write(path: str | Path, data: dict[str, Any]) -> None:
    store.write(Path(path), json.dumps(data, indent=1) + "\n")


def _line(name: str, log: float, fit: Fit) -> dict[str, Any]:
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
