"""What a published row says of the wires: bytes of weights and gradients on them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scaling_lab.cost.published import Row

#: Bytes of a weight gathered in 8 bits and of a gradient reduced in 4.
_EIGHT_BITS, _FOUR_BITS = 1.0, 0.5


def on_the_wires(row: Row) -> dict[str, float]:
    """The columns of what ``fsdp`` moves.

    DeepSpeed reduces gradients in the precision of training; ZeRO++, where no part of
    it is named, is all three.
    """
    text = f"{row.text('technique')} {row.text('zero_stage')}".lower()
    parts = re.findall(r"qwz|hpz|qgz", text)
    whole = "zero++" in text and not parts
    if whole:
        row.say("ZeRO++ read as all its three parts")

    def has(part: str) -> bool:
        return whole or part in parts

    own = 2.0 if "deepspeed" in row.text("framework").lower() else np.nan
    return {
        "gathered_bytes": _EIGHT_BITS if has("qwz") else 2.0,
        "near_again": float(has("hpz")),
        "reduced_bytes": _FOUR_BITS if has("qgz") else own,
    }


def node_of(row: Row) -> float | None:
    """GPUs of a node, where a row says so: hpZ's copy is divided over one."""
    found = re.search(r"hpz\s*[=:]\s*(\d+)", row.text("technique").lower())
    return float(found[1]) if found else None
