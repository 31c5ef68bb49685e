"""The shapes of HLO text: arrays with their layout, tiling and memory space."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]+)(\d*)(\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]*)\)")
_SPACE = re.compile(r"S\((\d+)\)")

#: Memory spaces: device memory is 0; a TPU's vector memory is 1; pinned host memory 5.
HBM, HOST = 0, 5


class Array(NamedTuple):
    """One array of a shape.

    Attributes:
      type: of an element (``bf16``), which has so many bits.
      dims: sizes. order: dims from the fastest to the slowest.
      tile: of the fastest dims, the fastest last; () where there is none.
      space: the memory it lies in.
    """

    type: str
    bits: int
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def elements(self) -> int:
        """How many there are, padding left out."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return -(-self.bits * self.elements // 8)

    @property
    def padded_bytes(self) -> int:
        """Bytes it takes up, whole tiles only."""
        sizes = [self.dims[dim] for dim in self.order] or list(self.dims[::-1])
        for place, width in enumerate(reversed(self.tile)):
            if place < len(sizes):
                sizes[place] = -(-sizes[place] // width) * width
        return -(-self.bits * math.prod(sizes) // 8)


@functools.lru_cache(maxsize=1 << 14)
def arrays(shape: str) -> tuple[Array, ...]:
    """Every array of a shape, a tuple's in order, nested ones in theirs.

    Tokens and opaque values are left out of what they have no size in: they count 0
    bits, so that places in a tuple stay places.
    """
    bare = re.sub(r"/\*.*?\*/", "", shape)
    found = [
        Array(
            letters + bits + rest,
            8 if letters == "pred" else int(bits or 0),
            _integers(dims.replace("<=", "")),
            _integers(layout.partition(":")[0]),
            _tile(layout),
            int(space[1]) if (space := _SPACE.search(layout)) else HBM,
        )
        for letters, bits, rest, dims, layout in _ARRAY.findall(bare)
    ]
    return tuple(found)


def total_bytes(shape: str) -> int:
    """Bytes of all its arrays, padding left out."""
    return sum(array.bytes for array in arrays(shape))


def _tile(layout: str) -> tuple[int, ...]:
    tile = _TILE.search(layout)
    return _integers(tile[1]) if tile else ()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
