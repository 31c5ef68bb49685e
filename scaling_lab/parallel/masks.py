"""Which key every query may see, as data.

A mask knows documents, causality, windows, chunks, a prefix and a map of blocks, and
says three things: every pair (`Mask.visible_BTS`), which blocks may hold a visible pair
(`Mask.pairs_QS`), so that kernels skip the others, and what share of all pairs is seen
(`Mask.density`), so that FLOPs are counted from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from scaling_lab.parallel.blocks import Blocks

Array = jax.Array
Batch = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which key every query may see.

    A query sees a key of its own segment that is no later than itself (`causal`) and
    no further back than `window` positions, and every key of its segment's prefix; of
    those it sees the ones that `blocks` lets it.

    Attributes:
      q_positions_BT: position of each query inside its document.
      k_positions_BS: the same for keys.
      q_segments_BT: document of each query, or ``None`` if all are one.
      k_segments_BS: the same for keys.
      k_prefix_BS: keys that are seen from before them too (prefix language models,
        Raffel et al. 2020, section 3.2.1), or ``None``.
      q_places_BT: place of each query in its row, the same in all rows; ``None`` if
        they stand in order. k_places_BS: the same for keys.
      picks_BKQC: of every run of queries and key-value head the blocks of keys that it
        sees and no others, -1 where there is none; ``None`` is all.
      picked: how many queries share a row of picks, and keys of a block of them.
      causal: whether the future is hidden.
      window: how many positions back are seen, the own one included; ``None`` is all.
      chunk: how many positions one segment holds, where segments are documents cut
        into chunks (`chunked`); ``None`` is all.
      blocks: which blocks of the row are seen; ``None`` is all.
      stride: how many positions each key stands for, at whose last it is; ``None`` is
        one.
      prefix: how many positions `k_prefix_BS` marks in a document; ``None`` says none.
      ordered: keys stand in the order of queries (S = T and the array order is the
        causal order), so a kernel may skip blocks without looking at positions.
      row: positions of the whole row, where these are a part of it; else ``None``.
    """

    q_positions_BT: Array
    k_positions_BS: Array
    q_segments_BT: Array | None = None
    k_segments_BS: Array | None = None
    k_prefix_BS: Array | None = None
    q_places_BT: Array | None = None
    k_places_BS: Array | None = None
    picks_BKQC: Array | None = None
    picked: tuple[int, int] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    chunk: int | None = dataclasses.field(default=None, metadata={"static": True})
    blocks: Blocks | None = dataclasses.field(default=None, metadata={"static": True})
    stride: int | None = dataclasses.field(default=None, metadata={"static": True})
    prefix: int | None = dataclasses.field(default=None, metadata={"static": True})
    ordered: bool = dataclasses.field(default=False, metadata={"static": True})
    row: int | None = dataclasses.field(default=None, metadata={"static": True})

    def visible_BKTS(self) -> Array:
        """The mask of every key-value head, K being 1 where all see alike."""
        visible_BKTS = self.visible_BTS()[:, None]
        if self.picks_BKQC is None or self.picked is None:
            return visible_BKTS
        rows, block = self.picked
        blocks_S = (self.places()[1] // block)[None, None, None, None]
        seen_BKQS = jnp.any(self.picks_BKQC[..., None] == blocks_S, -2)
        return visible_BKTS & jnp.repeat(seen_BKQS, rows, axis=2)

    def visible_BTS(self) -> Array:
        """The mask written out, but for picks: true where a query sees a key."""
        q_BT1 = self.q_positions_BT[:, :, None]
        k_B1S = self.k_positions_BS[:, None, :]
        seen_BTS = jnp.ones((q_BT1 - k_B1S).shape, bool)
        if self.causal:
            seen_BTS &= q_BT1 >= k_B1S
        if self.window is not None:
            seen_BTS &= q_BT1 - k_B1S < self.window
        if self.k_prefix_BS is not None:
            seen_BTS |= self.k_prefix_BS[:, None, :]
        if self.q_segments_BT is not None and self.k_segments_BS is not None:
            q_segments_BT1 = self.q_segments_BT[:, :, None]
            seen_BTS &= q_segments_BT1 == self.k_segments_BS[:, None, :]
        if self.blocks is not None:
            q_T, k_S = self.places()
            rows_TS = jnp.asarray(self.blocks.array_QS())[q_T // self.blocks.size]
            seen_BTS &= rows_TS[:, k_S // self.blocks.size][None]
        return seen_BTS

    def places(self) -> tuple[Array, Array]:
        """The place in its row of every query and of every key."""
        q_T = jnp.arange(self.q_positions_BT.shape[1])
        k_S = jnp.arange(self.k_positions_BS.shape[1])
        if self.q_places_BT is not None:
            q_T = self.q_places_BT[0]
        return q_T, k_S if self.k_places_BS is None else self.k_places_BS[0]

    def pairs_QS(self, q_block: int, k_block: int) -> Array:
        """Which blocks of queries may see something of which blocks of keys.

        Never false where a pair is visible; true for some blocks where none is. Blocks
        are cut in the order of the arrays; places within one rise without a gap.
        Queries and keys must be those of one row (`ordered`, or with their places).
        """
        (q_T, k_S) = self.places()
        (q_low, q_high), (k_low, k_high) = _ends(q_T, q_block), _ends(k_S, k_block)
        seen_QS = jnp.ones((q_low.size, k_low.size), bool)
        if self.causal:
            seen_QS &= q_high[:, None] >= k_low[None]
        if self.window is not None:
            seen_QS &= q_low[:, None] - k_high[None] < self.window
        if self.k_prefix_BS is not None:
            seen_QS |= jnp.any(_ends(self.k_prefix_BS, k_block)[1], 0)[None]
        if self.q_segments_BT is not None and self.k_segments_BS is not None:
            # Of any row: documents stand in order, so ends tell which a block meets.
            (q_first, q_last), (k_first, k_last) = (
                _ends(self.q_segments_BT, q_block),
                _ends(self.k_segments_BS, k_block),
            )
            meet = (q_first[:, :, None] <= k_last[:, None]) & (
                k_first[:, None] <= q_last[:, :, None]
            )
            seen_QS &= jnp.any(meet, 0)
        if self.blocks is not None:
            seen_QS &= self._mapped(q_low, q_high, k_low, k_high)
        return seen_QS

    def whole_QS(self, q_block: int, k_block: int) -> Array:
        """Which blocks of queries see every key of which blocks of keys.

        Never true where a pair is hidden; false for some blocks where none is. Asked of
        blocks that `pairs_QS` says meet, and that a block of the map holds whole.
        """
        q_T, k_S = self.places()
        (q_low, q_high), (k_low, k_high) = _ends(q_T, q_block), _ends(k_S, k_block)
        seen_QS = jnp.ones((q_low.size, k_low.size), bool)
        if self.causal:
            seen_QS &= q_low[:, None] >= k_high[None]
        if self.window is not None:
            seen_QS &= q_high[:, None] - k_low[None] < self.window
        if self.q_segments_BT is not None and self.k_segments_BS is not None:
            (q_first, q_last), (k_first, k_last) = (
                _ends(self.q_segments_BT, q_block),
                _ends(self.k_segments_BS, k_block),
            )
            least = jnp.minimum(q_first[:, :, None], k_first[:, None])
            most = jnp.maximum(q_last[:, :, None], k_last[:, None])
            seen_QS &= jnp.all(least == most, 0)
        return seen_QS

    def _mapped(self, q_low: Array, q_high: Array, k_low: Array, k_high: Array):
        assert self.blocks is not None
        # Summed from the corner, any rectangle of the map is four numbers.
        corner = np.pad(self.blocks.array_QS(), ((1, 0), (1, 0)))
        sums = jnp.asarray(np.cumsum(np.cumsum(corner, 0), 1))
        top, bottom = (edge // self.blocks.size for edge in (q_low, q_high))
        left, right = (edge // self.blocks.size for edge in (k_low, k_high))

        def at(row: Array, column: Array) -> Array:
            return sums[row[:, None], column[None]]

        inside = at(bottom + 1, right + 1) - at(top, right + 1)
        return inside - at(bottom + 1, left) + at(top, left) > 0

    def density(self) -> float:
        """Fraction of (query, key) pairs seen, as if every row were one document.

        Of a part of a row it is the whole row's: parts are cut to be alike.
        """
        t, s = self.q_positions_BT.shape[1], self.k_positions_BS.shape[1]
        t, s = (t, s) if self.row is None else (self.row, self.row)
        if self.stride is not None:
            return float(np.sum((np.arange(t) + 1) // self.stride)) / (t * s)
        if self.picked is not None and self.picks_BKQC is not None and self.ordered:
            rows, block = self.picked
            others_Q = np.minimum(np.arange(t // rows), self.picks_BKQC.shape[-1] - 1)
            own = (t // rows) * rows * (rows + 1) / 2
            return (float(others_Q.sum()) * rows * block + own) / (t * s)
        limits = (self.window, self.chunk, self.blocks)
        if not self.causal and limits == (None, None, None):
            return 1.0
        if not self.ordered and self.row is None:  # decoding: all that is written
            return 1.0
        q_T = np.arange(t)
        last_T = q_T if self.causal else np.full(t, s - 1)
        first_T = np.zeros(t, int)
        if self.window is not None:
            first_T = np.maximum(first_T, q_T - self.window + 1)
        if self.chunk is not None:
            first_T = np.maximum(first_T, q_T // self.chunk * self.chunk)
            last_T = np.minimum(last_T, (q_T // self.chunk + 1) * self.chunk - 1)
        if self.blocks is None:
            seen = float(np.sum(last_T - first_T + 1))
            if self.prefix is not None:  # what of it is not seen anyway
                prefix = min(self.prefix, s)
                both_T = np.minimum(prefix - 1, last_T) - first_T + 1
                seen += float(np.sum(prefix - np.maximum(0, both_T)))
            return seen / (t * s)
        return self.blocks.pairs(first_T, last_T) / (t * s)


def _ends(numbers: Array, block: int) -> tuple[Array, Array]:
    """The least and the greatest number of every block of the last dim."""
    apart = numbers.reshape(*numbers.shape[:-1], -1, block)
    return apart.min(-1), apart.max(-1)


def causal_mask(
    batch: Batch, window: int | None = None, blocks: Blocks | None = None
) -> Mask:
    """Causal self-attention inside each document of a packed batch."""
    positions_BT, segments_BT = batch["positions_BT"], batch["segments_BT"]
    return Mask(
        positions_BT,
        positions_BT,
        segments_BT,
        segments_BT,
        window=window,
        blocks=blocks,
        ordered=True,
    )


def prefixed(mask: Mask, prefix: int) -> Mask:
    """The mask with the first positions of every document seen by all of it."""
    return dataclasses.replace(
        mask, k_prefix_BS=mask.k_positions_BS < prefix, prefix=prefix
    )


def chunked(mask: Mask, chunk: int) -> Mask:
    """The mask with every document cut into chunks that do not see each other.

    Chunks are segments like documents, so every kernel that knows those knows these.
    """

    def cut(positions: Array, segments: Array | None) -> Array:
        number = positions // chunk
        if segments is None:
            return number
        most = math.ceil(positions.shape[1] / chunk) + 1
        return segments * most + number

    return dataclasses.replace(
        mask,
        q_segments_BT=cut(mask.q_positions_BT, mask.q_segments_BT),
        k_segments_BS=cut(mask.k_positions_BS, mask.k_segments_BS),
        window=min(chunk, mask.window or chunk),
        chunk=chunk,
    )
