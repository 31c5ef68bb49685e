"""Which tori can be had, and the nearest to one that cannot.

Source: docs.cloud.google.com/tpu/docs (the pages of v4, v5e, v5p, v6e and tpu7x).
"""

from __future__ import annotations

import functools
import itertools
import math

Topology = tuple[int, ...]

#: Slices smaller than a cube, as they are written.
_PARTS_OF_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
#: Slices of a pod of 16 x 16.
_PARTS_OF_A_SQUARE = (
    (1, 1),
    (2, 2),
    (2, 4),
    (4, 4),
    (4, 8),
    (8, 8),
    (8, 16),
    (16, 16),
)


@functools.cache
def shapes(limits: Topology, cube: int, most: int) -> tuple[Topology, ...]:
    """Every torus with rising axes within limits and at most so many chips.

    Args:
      limits: the longest axes, rising.
      cube: edge of the cubes that larger ones are made of; 0 for a square pod.
      most: chips.
    """
    if not cube:
        found = [s for s in _PARTS_OF_A_SQUARE if max(s) <= limits[-1]]
    else:
        edges = [range(cube, limit + 1, cube) for limit in limits]
        whole = {tuple(sorted(shape)) for shape in itertools.product(*edges)}
        found = [*_PARTS_OF_A_CUBE, *whole]
    within = [shape for shape in found if math.prod(shape) <= most]
    return tuple(sorted(within, key=lambda shape: (math.prod(shape), shape)))


def of_cubes(topology: Topology, cube: int) -> bool:
    """Whether a torus is made of whole cubes."""
    return all(size % cube == 0 for size in topology)


def written(topology: Topology, known: tuple[Topology, ...]) -> Topology | None:
    """A known torus with these axes, in the order it is written in; else ``None``."""
    return next((s for s in known if sorted(s) == sorted(topology)), None)


def nearest(topology: Topology, known: tuple[Topology, ...]) -> list[Topology]:
    """The three known tori that are nearest in axes and in number of chips."""
    wanted = sorted(topology)

    def distance(shape: Topology) -> tuple[float, ...]:
        axes = zip(sorted(shape), wanted, strict=True)
        ratio = math.prod(shape) / math.prod(topology)
        return sum(abs(math.log(a / b)) for a, b in axes), abs(math.log(ratio)), *shape

    near = sorted(known, key=distance)[:3]
    return sorted(near, key=lambda shape: (math.prod(shape), shape))


def most_cubic(chips: int, known: tuple[Topology, ...]) -> Topology | None:
    """The known torus of so many chips whose axes are most alike; else ``None``."""
    exact = [shape for shape in known if math.prod(shape) == chips]
    return min(exact, key=lambda shape: (max(shape), shape), default=None)
