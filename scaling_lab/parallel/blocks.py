"""A map of which blocks of a row see which, the same whatever the data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A map of which blocks of keys each block of queries sees, the same for all rows.

    Blocks are cut by the place of a token in its row, whatever its document.

    Attributes:
      size: tokens of a block. seen: for every block of queries the blocks it sees.
    """

    size: int
    seen: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, size: int, seen_QS: Any) -> Blocks:
        """From a square array of booleans.

        Raises:
          ValueError: not square, or a block does not see itself (its queries could then
            see nothing at all).
        """
        seen_QS = np.asarray(seen_QS, bool)
        if seen_QS.ndim != 2 or seen_QS.shape[0] != seen_QS.shape[1]:
            raise ValueError(f"a block map is square; this one has {seen_QS.shape}")
        blind = np.flatnonzero(~seen_QS.diagonal())
        if len(blind):
            raise ValueError(
                f"block {blind[0]} does not see itself, so its first query would see "
                "nothing; set the diagonal of the map"
            )
        rows = (tuple(map(int, np.flatnonzero(row))) for row in seen_QS)
        return cls(size, tuple(rows))

    def array_QS(self) -> np.ndarray:
        """The map as booleans."""
        found = np.zeros((len(self.seen),) * 2, bool)
        for row, blocks in enumerate(self.seen):
            found[row, list(blocks)] = True
        return found

    def pairs(self, first_T: np.ndarray, last_T: np.ndarray) -> float:
        """Pairs between two ends of every query that the map lets through."""
        total = 0
        for row, seen in enumerate(self.seen):
            queries = slice(row * self.size, (row + 1) * self.size)
            starts = np.asarray(seen) * self.size
            low = np.maximum(first_T[queries, None], starts[None])
            high = np.minimum(last_T[queries, None], starts[None] + self.size - 1)
            total += int(np.maximum(0, high - low + 1).sum())
        return float(total)
