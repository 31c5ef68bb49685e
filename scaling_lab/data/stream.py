"""Batches of windows over one split, each a function of (seed, index) alone."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from scaling_lab.data.tokenizer import Tokenizer

_READ_AHEAD_THREADS = 2
_READ_AHEAD_BATCHES = 4


class Stream:
    """Windows of `length` tokens and their targets, shuffled anew every epoch.

    Attributes:
      windows: how many windows an epoch has; they overlap in no predicted token.
      bytes_per_token_V: bytes of text each id stands for; a loss summed over targets,
        in nats, over ln 2 and over the bytes of those targets is bits per byte.

    Raises:
      ValueError: a batch or length below 1, or fewer tokens than one window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tokenizer: Tokenizer,
        split: str,
        batch: int,
        length: int,
        seed: int,
    ) -> None:
        for name, value in (("batch", batch), ("length", length)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if len(tokens) < length + 1:
            fits = len(tokens) - 1
            choice = f"ask for a length of at most {fits}, " if fits > 0 else ""
            share = ", or a larger held_out_fraction" if split == "held_out" else ""
            raise ValueError(
                f"split {split!r} has {len(tokens)} token(s), too few for a window of "
                f"length {length}, which takes {length + 1} (targets are one further): "
                f"{choice}give more text{share}"
            )
        self.bytes_per_token_V = tokenizer.bytes_per_token_V
        self.windows = (len(tokens) - 1) // length
        self._tokens = tokens
        self._end_id = tokenizer.end_id
        self._batch = batch
        self._length = length
        self._seed = seed

    def batch(self, index: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Batch `index`, or the `rows` of it that one process feeds.

        Returns:
          int32 arrays: ``tokens_BT``; ``targets_BT``, the next token, -1 (not counted)
          where that belongs to another document; ``positions_BT``, from 0 in each
          document; ``segments_BT``, which document of the window, from 0.

        Raises:
          ValueError: a negative index, or rows that the batch does not have.
        """
        if index < 0:
            raise ValueError(f"batch index is {index}; the first batch is 0")
        chosen = range(self._batch)[rows or slice(None)]
        if not chosen:
            raise ValueError(f"{rows} selects none of the batch's {self._batch} rows")
        first = index * self._batch
        starts = [self._order[first + row] * self._length for row in chosen]
        windows = np.stack([self._tokens[s : s + self._length + 1] for s in starts])
        return _packed(windows.astype(np.int32), self._end_id)

    def batches(
        self, start: int = 0, rows: slice | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches `start`, `start` + 1, … without end, read ahead by threads."""
        import grain

        self.batch(start, rows)  # Bad arguments raise here and not in a thread.
        ahead = grain.ReadOptions(
            num_threads=_READ_AHEAD_THREADS, prefetch_buffer_size=_READ_AHEAD_BATCHES
        )
        batch = functools.partial(self.batch, rows=rows)
        indices = grain.MapDataset.range(start, sys.maxsize)
        return iter(indices.map(batch).to_iter_dataset(ahead))

    @functools.cached_property
    def _order(self) -> Any:
        """Window numbers: one seeded permutation an epoch, computed, never stored."""
        import grain

        # Epoch e is shuffled by seed + e, so neighbouring seeds would share orders.
        digest = hashlib.blake2b(str(self._seed).encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "big")
        return grain.MapDataset.range(self.windows).shuffle(seed=seed).repeat()


def _packed(windows: np.ndarray, end_id: int) -> dict[str, np.ndarray]:
    """Windows of length T + 1 as tokens, targets, positions and segments."""
    tokens_BT, next_BT = windows[:, :-1], windows[:, 1:]
    ends_BT = tokens_BT == end_id
    starts_BT = np.zeros_like(ends_BT)
    starts_BT[:, 1:] = ends_BT[:, :-1]
    column = np.arange(tokens_BT.shape[1], dtype=np.int32)
    begun_BT = np.maximum.accumulate(np.where(starts_BT, column, 0), axis=1)
    return {
        "tokens_BT": np.ascontiguousarray(tokens_BT),
        "targets_BT": np.where(ends_BT, np.int32(-1), next_BT),
        "positions_BT": (column - begun_BT).astype(np.int32),
        "segments_BT": np.cumsum(starts_BT, axis=1, dtype=np.int32),
    }
