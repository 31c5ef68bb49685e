"""Mixtures of experts: one file for each way to bring tokens and experts together.

`routing` decides who goes where, `products` multiplies rows with their experts'
weights, and each of the rest is a mechanism of `place.experts`, held to `dense`.
"""

from scaling_lab.parallel.experts.megablox import grouped
from scaling_lab.parallel.experts.products import Grouped, blocked, ragged
from scaling_lab.parallel.experts.spread import (
    APART,
    MECHANISMS,
    WHOLE,
    How,
    Places,
    run,
)
from scaling_lab.parallel.experts.tiles import tiled

__all__ = [
    "APART",
    "MECHANISMS",
    "WHOLE",
    "Grouped",
    "How",
    "Places",
    "blocked",
    "grouped",
    "ragged",
    "run",
    "tiled",
]
