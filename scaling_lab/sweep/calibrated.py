"""A compiled step priced again with somebody's own efficiencies."""

from __future__ import annotations

import dataclasses

from scaling_lab import compile as compiled
from scaling_lab import measure
from scaling_lab.compile import price
from scaling_lab.config import RunConfig
from scaling_lab.cost import calibrations
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.record import RunRecord

#: What prices a module -> the fitted efficiency that says the same of a chip.
_SAME = {
    "cycles": "matmul",
    "matmul": "matmul",
    "attention": "attention",
    "memory": "memory",
    "links": "link",
    "network": "network",
}


def recalibrated(
    found: RunRecord, config: RunConfig, calibration: Calibration, text: str | None
) -> RunRecord:
    """The record with its seconds by other efficiencies; bytes are the compiler's.

    A calibration says how a chip's efficiencies differ from those that come with the
    lab. What prices a module differs from its own table by the same ratios.

    Args:
      text: the scheduled module; ``None`` of a program that was never made.
    """
    chip = measure.target_chip(config)
    if chip is None or not chip.flops_per_second:
        return found
    run = points_of([config], chip)
    predicted = (found.predicted or {}) | predict(run, calibration).row(0)
    found = dataclasses.replace(found, predicted=predicted)
    if found.status != "ok" or found.compiled is None or text is None:
        return found
    base, frozen = price.efficiencies(chip), calibrations.frozen()
    changed = {
        ours: getattr(base, ours)
        * float(calibration.of(theirs, run)[0] / frozen.of(theirs, run)[0])
        for ours, theirs in _SAME.items()
    }
    efficiencies = dataclasses.replace(base, **changed, source="calibrated")
    target = config.parsed_target()
    # The record's own mesh may be by name; a module counts devices by axes' order.
    again = compiled.read(text, config.layout.mesh, target, efficiencies)
    return dataclasses.replace(found, compiled=found.compiled | again)
