"""A chip's facts as columns of points."""

from __future__ import annotations

from typing import Any

import numpy as np

from scaling_lab.hardware import Chip

#: A peak and a bandwidth for chips whose vendor claims none (a CPU): units for an
#: efficiency fitted on that chip, and no claim about it.
UNIT_FLOPS_PER_SECOND, UNIT_BYTES_PER_SECOND = 1e12, 1e10
#: A way to the host whose rate nobody says is taken for the slowest of those known.
SLOWEST_HOST_BYTES_PER_SECOND = 1.6e10
#: Which of a chip's peaks a precision runs at.
_PEAK = {
    "nvfp4": "float4",
    "mxfp8": "float8",
    "float16": "bfloat16",
    "float32": "float32",
}


def machine_columns(found: Chip, count: float) -> dict[str, Any]:
    """A chip's columns, one device's share of each."""
    per = found.devices_per_chip
    wire = found.hbm_bytes_per_second or UNIT_BYTES_PER_SECOND
    link = found.link_bytes_per_second or wire
    return {
        "chip": found.name,
        "devices": count * per,
        "devices_per_chip": per,
        "hbm_bytes": (found.hbm_bytes or np.inf) / per,
        "hbm_bytes_per_second": wire / per,
        "link_bytes_per_second": link / per,
        "scale_up": (found.scale_up_chips or np.inf) * per,
        "torus_dims": found.torus_dims,
        "network_bytes_per_second": (found.network_bytes_per_second or link) / per,
    }


def host_rate(found: Chip) -> float:
    """Bytes per second of one device to its host's memory, one way."""
    rate = found.host_bytes_per_second or SLOWEST_HOST_BYTES_PER_SECOND
    return rate / found.devices_per_chip


def peak_of(found: Chip, precision: str) -> tuple[float, float]:
    """A chip's peak in a precision and in 16 bits; the nearest it has, or the unit.

    float32 is priced at half of 16 bits, which is what TF32 does; a TPU's float8 and
    int8 stand for each other.
    """
    known = found.flops_per_second
    wide = known.get("bfloat16", known.get("float16", UNIT_FLOPS_PER_SECOND))
    name = _PEAK.get(precision, precision)
    if name == "float32":
        return known.get(name, wide / 2 if known else wide), wide
    if name in known:
        return known[name], wide
    if name == "float4" and "float8" in known:
        return known["float8"], wide
    if name == "int8" and "float8" in known:
        return known["float8"], wide
    return wide, wide
