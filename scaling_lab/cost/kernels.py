"""Which kernel attends: a TPU's, cuDNN's, ours in Triton, or none."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from scaling_lab.cost.efficiencies import family_of
from scaling_lab.hardware import Chip
from scaling_lab.parallel import cudnn, triton
from scaling_lab.parallel.sight import Sight

#: Of a GPU's peak that cuDNN's kernel reaches, and ours by its family; where none is
#: said, as FlashAttention-2 does on an H100 (`compile.price` has the sources).
CUDNN, TRITON, AMPERE = 0.519, 0.35, 0.5
#: Products of a block of scores in both passes: ours makes the scores of the backward
#: pass once for the queries' gradient and once for the keys'.
_OURS, _THEIRS = 9, 7


class Rows(NamedTuple):
    """What is attended to.

    Attributes:
      widest: numbers of a query's head. narrow: whether they have 16 bits.
      sight: what a query sees. length: of a row.
      context: ways that a row is divided. parts: where a device attends to its part of
        one, and not to whole rows. Both may be columns.
    """

    widest: int
    narrow: bool
    sight: Sight
    length: int
    context: Any
    parts: Any


def attention(chip: Chip, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Whether scores are never written, and seconds over those of the chip's kernel.

    On a GPU cuDNN's takes whole rows, and what it does not take (parts of rows, maps of
    blocks, prefixes, chosen blocks, wide heads, float32) ours does, in blocks that its
    sides divide into (`parallel.triton.suits`).
    """
    parts = np.asarray(rows.parts, bool)
    if chip.torus_dims > 0:
        return parts | True, np.ones(parts.shape)
    sight, widest = rows.sight, rows.widest
    plain = not (sight.blocks or sight.prefix or sight.top) and rows.narrow
    plain = plain and widest <= cudnn.WIDEST and widest % cudnn.MULTIPLE == 0
    theirs = plain & ~parts
    # A part of a row is a chunk from its front and one from its back.
    own = np.where(parts, rows.length // (2 * np.asarray(rows.context)), rows.length)
    most = math.gcd(
        min(triton.BACKWARD),
        sight.blocks.size if sight.blocks else 0,
        sight.block if sight.top else 0,
    )
    fits = (np.gcd(own, most) >= triton.SHORTEST) & (widest <= triton.WIDEST)
    rate = AMPERE if family_of(chip.name) == "ampere" else TRITON
    slower = CUDNN / rate * _OURS / _THEIRS
    return theirs | fits, np.where(fits & ~theirs, slower, 1.0)
