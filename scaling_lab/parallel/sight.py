"""What a model's layers see, as its config holds it and as people write it.

A `Mask` is of one batch; a `Sight` is of a model, and makes the mask of any batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling_lab.names import one_of
from scaling_lab.parallel import masks
from scaling_lab.parallel.masks import Batch, Blocks, Mask

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sight:
    """Which keys of its own document a query sees; by default all before it.

    Attributes:
      window: so many positions back, the own one included (Longformer, Beltagy et al.
        2020, section 3.1); ``None`` is all.
      every: every so manyth layer sees all that is before it, and the others what else
        is said here (Gemma 3, 2025, section 2.1); ``None`` is no layer.
      chunk: only positions of its own run of so many (Llama 4's local layers).
      prefix: the first so many positions of its document too, before or after it
        (prefix language models, Raffel et al. 2020, section 3.2.1); what they say of
        each other is no target.
      blocks: only these blocks of the row (BigBird, Zaheer et al. 2020, section 2).
      top: of the blocks before it only so many, those that the model chooses, beside
        its own and the `near` right before it (`parallel.choice`); ``None`` is all.
      block: positions of a block that is chosen.
    """

    window: int | None = None
    every: int | None = None
    chunk: int | None = None
    prefix: int | None = None
    blocks: Blocks | None = None
    top: int | None = None
    near: int = 1
    block: int = 32

    @classmethod
    def parse(cls, text: str) -> Sight:
        """From words, as ``window=128,global=4``.

        Raises:
          ValueError: an unknown word or a number that cannot be, with what can.
        """
        fields: dict[str, Any] = {}
        for part in text.split(",") if text != "causal" else ():
            word, _, value = part.strip().partition("=")
            one_of("mask", word, ("causal", *_FIELDS))
            if _FIELDS[word] in fields:
                raise ValueError(f"mask {text!r} says {word} twice")
            if word == "blocks":
                fields["blocks"] = _read(value)
            elif value.isdigit() and int(value):
                fields[_FIELDS[word]] = int(value)
            else:
                raise ValueError(
                    f"mask {text!r}: {word} needs a number of at least 1, as {word}=128"
                )
        sight = cls(**fields)
        sight.check()
        return sight

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sight:
        """The inverse of ``dataclasses.asdict``, after JSON made lists of tuples.

        Raises:
          ValueError: an unknown field, or a map of blocks that is none.
        """
        fields = dict(data)
        for name in fields:
            one_of("field of Sight", name, [f.name for f in dataclasses.fields(cls)])
        if isinstance(fields.get("blocks"), Mapping):
            fields["blocks"] = _blocks(fields["blocks"])
        return cls(**fields)

    @property
    def text(self) -> str:
        """The words that say it; a map of blocks by its size and number."""
        words = [
            f"{word}={getattr(self, field)}"
            for word, field in _FIELDS.items()
            if field not in ("blocks", *_CHOICE) and getattr(self, field) is not None
        ]
        if self.top is not None:
            words += [f"{word}={getattr(self, word)}" for word in _CHOICE]
        if self.blocks is not None:
            words.append(f"blocks={len(self.blocks.seen)}×{self.blocks.size}")
        return ",".join(words) or "causal"

    @property
    def windows_alone(self) -> bool:
        """Whether nothing but a window limits what layers see."""
        return self == Sight(window=self.window, every=self.every)

    @property
    def keys(self) -> int | None:
        """What an average query sees in a long row, where it is limited; else all."""
        limits = [self.window, self.chunk and max(1, self.chunk // 2)]
        if self.blocks is not None:
            length = len(self.blocks.seen) * self.blocks.size
            at_BT: Any = np.empty((1, length), np.int32)  # only its shape is read
            mask = Mask(at_BT, at_BT, blocks=self.blocks, ordered=True)
            limits.append(max(1, round(mask.density() * length)))
        if self.top is not None:
            limits.append((self.top + self.near) * self.block + self.block // 2)
        return min((limit for limit in limits if limit), default=None)

    def share(self, layers: int) -> float:
        """Of so many layers the share that is limited to `keys`."""
        limited = sum(map(self.of_layers, range(layers)))
        return limited / layers if self.keys else 0.0

    def check(self) -> None:
        """Raises unless its parts go together.

        Raises:
          ValueError: what does not, and what would do.
        """
        for word, field in _FIELDS.items():
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"mask {word}={value}: must be at least 1")
        if self.every == 1:
            raise ValueError("mask global=1: then every layer sees all; say causal")
        if self.every is not None and dataclasses.replace(self, every=None) == Sight():
            raise ValueError(
                f"mask global={self.every}: every layer sees all already; say what the "
                f"others see, as window=128,global={self.every}"
            )
        others = dataclasses.replace(self, every=None, top=None, near=1, block=32)
        if self.top is None and (self.near, self.block) != (1, 32):
            raise ValueError("mask near and block are of a choice; say top=4 too")
        if self.top is not None and others != Sight():
            raise ValueError(
                f"mask {self.text}: blocks are chosen from all of a document; leave "
                f"{others.text} out"
            )
        if self.prefix is not None and (self.chunk or self.blocks):
            other = "chunk" if self.chunk else "blocks"
            raise ValueError(
                f"mask prefix={self.prefix} is seen by all of its document, and "
                f"{other} would hide it again; leave one of them out"
            )

    def check_length(self, length: int) -> None:
        """Raises unless it says what every position of a row sees.

        Raises:
          ValueError: a map of blocks that ends before the row does, blocks to choose
            from into which it does not divide, or a prefix that is longer.
        """
        if self.prefix is not None and self.prefix > length:
            raise ValueError(
                f"mask prefix={self.prefix} is no target itself, so there is no target "
                f"in length={length}; use prefix={length} or less"
            )
        if self.top is not None and length % self.block:
            near = max(self.block, length // self.block * self.block)
            raise ValueError(
                f"length={length} does not divide into blocks of {self.block} to "
                f"choose from; use --length {near}, or a block of "
                f"{math.gcd(length, self.block)}"
            )
        if self.blocks is None:
            return
        count, size = len(self.blocks.seen), self.blocks.size
        if length > count * size:
            raise ValueError(
                f"a map of {count} blocks of {size} tokens says nothing of positions "
                f"from {count * size} on, and length={length}; use --length "
                f"{count * size} or less, or a map of {-(-length // size)} blocks"
            )

    def of_layers(self, number: int) -> bool:
        """Whether the layer of a number, from 0, sees only what is said here."""
        return self.every is None or (number + 1) % self.every != 0

    def over(self, batch: Batch) -> Mask:
        """The mask of a packed batch's self-attention."""
        return self._limited(masks.causal_mask(batch, self.window, self.blocks))

    def after(self, positions_BT: Array, slots_BS: Array, written: Array) -> Mask:
        """The mask of queries over the slots of a cache of one document each.

        Args:
          written: how many slots are, those of the queries included. Later ones stand
            later than every query, so that causality hides them.
        """
        mask = Mask(
            positions_BT,
            slots_BS,
            q_places_BT=positions_BT if self.blocks is not None else None,
            window=self.window,
            blocks=self.blocks,
        )
        mask = self._limited(mask)
        if mask.k_prefix_BS is None:
            return mask
        prefix_BS = mask.k_prefix_BS & (slots_BS < written)
        return dataclasses.replace(mask, k_prefix_BS=prefix_BS)

    def counted(self, batch: Batch) -> dict[str, Array]:
        """A batch without the targets that their own query sees: those of a prefix."""
        if self.prefix is None:
            return dict(batch)
        seen_BT = batch["positions_BT"] < self.prefix - 1
        return {**batch, "targets_BT": jnp.where(seen_BT, -1, batch["targets_BT"])}

    def _limited(self, mask: Mask) -> Mask:
        if self.prefix is not None:
            mask = masks.prefixed(mask, self.prefix)
        return mask if self.chunk is None else masks.chunked(mask, self.chunk)


#: Words, and the fields they fill.
_FIELDS = {
    "window": "window",
    "global": "every",
    "chunk": "chunk",
    "prefix": "prefix",
    "blocks": "blocks",
    "top": "top",
    "near": "near",
    "block": "block",
}
#: Those of a choice of blocks.
_CHOICE = ("top", "near", "block")


def _read(path: str) -> Blocks:
    """A map of blocks from a file."""
    try:
        return _blocks(json.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"mask blocks={path}: {type(error).__name__}: {error}; the file holds what "
            'each block sees, as {"size": 64, "seen": [[0], [0, 1], [0, 2]]}'
        ) from error


def _blocks(data: Mapping[str, Any]) -> Blocks:
    """From the size of a block and what each sees, checked."""
    try:
        return _checked(data["size"], data["seen"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"blocks={data}: {type(error).__name__}: {error}") from error


def _checked(size: Any, seen: Any) -> Blocks:
    if not isinstance(size, int) or size < 1 or not seen:
        raise ValueError(f"size {size!r} of a block and {len(seen)} blocks")
    outside = [block for row in seen for block in row if not 0 <= block < len(seen)]
    if outside:
        raise ValueError(f"block {outside[0]} of {len(seen)}, numbered from 0")
    found = Blocks(size, tuple(tuple(sorted(map(int, set(row)))) for row in seen))
    return Blocks.of(size, found.array_QS())
