"""Which links a mesh axis runs over, and how long a collective takes on them.

The mesh follows the machine as `layouts.make_mesh` lays it out: the axes that send most
choose first, whole dims of a torus, as many as multiply to their size; what is left
over takes parts of dims, which close no ring. On GPUs they stay inside a node. Where
the compiler says which algorithm it chose for a TPU's collective, that decides how
many links it uses at once.

Times are of rings and tori (Chan et al. 2007, "Collective communication"; jax-ml/
scaling-book, "Sharded matrices"): an all-gather moves (n-1)/n of its result over the
links of a device, an all-reduce twice that, an all-to-all a quarter of its ring's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

from scaling_lab.compile._groups import rank
from scaling_lab.compile.price import Efficiencies, Physics
from scaling_lab.hardware import Target
from scaling_lab.layouts.mesh import ACROSS_SLICES, RISING

#: The networks between chips, the slowest last; simulated devices share a host.
HOST, ICI, NVLINK, XGMI, DCN = "host", "ici", "nvlink", "xgmi", "dcn"

_SLOWER = (HOST, ICI, NVLINK, XGMI, DCN)
#: The link between the devices of one chip, in links of the torus.
_ON_CHIP, _ON_CHIP_LANES = -1, 6
#: How many dims a TPU all-gather runs over, and the links an all-reduce does.
_GATHER = re.compile(r'"emitter":"(\d)DAll')
_COLOURS = re.compile(r"colors:(\d+) phases:(\d+)")


@dataclasses.dataclass(frozen=True)
class Link:
    """What joins the devices along some axes.

    Attributes:
      kind: ``ici``, ``nvlink``, ``xgmi``, ``dcn`` where nodes or slices are crossed,
        or ``host`` (simulated devices share one memory).
      rings: (dim of the torus, devices along it, whether they close a ring).
      nodes: how many nodes or slices it spans. per_node: devices in each of them.
    """

    kind: str
    rings: tuple[tuple[int, int, bool], ...] = ()
    nodes: int = 1
    per_node: int = 1

    def joined(self, other: Link) -> Link:
        """Both together: groups that run along the axes of both."""
        worst = max(self.kind, other.kind, key=_SLOWER.index)
        return Link(
            worst,
            self.rings + other.rings,
            self.nodes * other.nodes,
            self.per_node * other.per_node,
        )


def of_axes(mesh_axes: Mapping[str, int], target: Target) -> dict[str, Link]:
    """Mesh axis -> its links on a target, the mesh laid out as `layouts.make_mesh`."""
    chip = target.chip
    # Of axes that send alike the mesh puts the last closest.
    busiest = sorted(mesh_axes, key=lambda axis: rank(RISING, axis))[::-1]
    if chip is None or chip.link_bytes_per_second is None:
        found = {axis: Link(HOST, per_node=size) for axis, size in mesh_axes.items()}
    elif chip.torus_dims:
        found = _on_torus({axis: mesh_axes[axis] for axis in busiest}, target)
    else:
        found, left = {}, target.topology[-1]
        for axis in busiest:
            size = mesh_axes[axis]
            inside = math.gcd(size, left)
            left //= inside
            kind = chip.link_class if inside == size else DCN
            found[axis] = Link(kind, nodes=size // inside, per_node=inside)
    return {axis: found[axis] for axis in mesh_axes}


def _on_torus(busiest: Mapping[str, int], target: Target) -> dict[str, Link]:
    """Links of axes, those that send most first."""
    chip = target.chip
    assert chip is not None
    whole = dict(enumerate(target.topology))
    free, wraps = dict(whole), target.wraps
    across = dict.fromkeys(busiest, 1)
    left, cores = target.slices, chip.devices_per_chip
    for axis in sorted([*busiest][::-1], key=lambda axis: rank(ACROSS_SLICES, axis)):
        across[axis] = math.gcd(busiest[axis], left)
        left //= across[axis]
    found: dict[str, Link] = {}
    for axis, size in busiest.items():
        inside = size // across[axis]
        on_chip = math.gcd(inside, cores)
        cores //= on_chip
        rings = [(_ON_CHIP, on_chip, False)] if on_chip > 1 else []
        for dim, part in _parts(inside // on_chip, free):
            rings.append((dim, part, part == whole[dim] and wraps[dim]))
            free[dim] //= part
        kind = DCN if across[axis] > 1 else ICI
        found[axis] = Link(kind, tuple(rings), across[axis], inside)
    return found


def _parts(size: int, free: Mapping[int, int]) -> list[tuple[int, int]]:
    """Dims that multiply to a size, most of them first; parts of dims where none do."""
    for count in range(len(free), 0, -1):
        for dims in itertools.combinations(free, count):
            sizes = [free[dim] for dim in dims]
            if math.prod(sizes) == size and min(sizes) > 1:
                return list(zip(dims, sizes, strict=True))
    parts = []
    for dim, width in free.items():
        part = math.gcd(size, width)
        if part > 1:
            parts.append((dim, part))
            size //= part
    return parts


def seconds(
    kind: str,
    size: float,
    link: Link,
    facts: tuple[Physics, Efficiencies],
    config: str = "",
) -> float | None:
    """How long one collective takes alone.

    Args:
      kind: as in `hlo.KINDS`.
      size: bytes of one device, as `hlo.Collective` counts them, of one execution.
      link: what it runs over. facts: of the chip.
      config: the compiler's own words about it.

    Returns:
      `None` where the chip's links are not known.
    """
    physics, reached = facts
    if link.kind == HOST or physics.link_bytes_per_second is None:
        return None
    devices = link.nodes * link.per_node
    if devices < 2 or not size:
        return 0.0
    times = 2.0 if kind == "all-reduce" else 1.0
    moved = times * size
    inside, hops = _inside(kind, moved, link, facts, config)
    across = 0.0
    if link.nodes > 1:
        rate = physics.network_bytes_per_second
        if rate is None:
            return None
        crossing = moved * (link.nodes - 1) / link.nodes
        # Each device of a node carries its part of what the node must learn.
        shared = 1 if kind == "collective-permute" else link.per_node
        if kind == "all-to-all":
            shared = 1
        across = crossing / shared / (rate * reached.network)
        hops += link.nodes - 1
    slow = 1 + reached.link_half_bytes / size
    return max(inside * slow, across) + reached.hop_seconds * (1 + times * hops)


def _inside(
    kind: str,
    moved: float,
    link: Link,
    facts: tuple[Physics, Efficiencies],
    config: str,
) -> tuple[float, float]:
    """Seconds inside a node or slice, and hops along the way."""
    physics, reached = facts
    rate = (physics.link_bytes_per_second or 0.0) * reached.links
    n = link.per_node
    if n < 2:
        return 0.0, 0.0
    if not physics.torus_dims:
        share = 1.0 if kind == "collective-permute" else (n - 1) / n
        return moved * share / rate, 1.0
    one = rate / (2 * physics.torus_dims)
    rings = [ring for ring in link.rings if ring[1] > 1 and ring[0] != _ON_CHIP]
    if not rings:
        return moved * (n - 1) / n / (one * _ON_CHIP_LANES), 1.0
    if kind == "collective-permute":
        return moved / one, 1.0
    if kind == "all-to-all":
        far = max((size / (8 if wrapped else 4) for _, size, wrapped in rings))
        return moved * far / one, float(sum(size for _, size, _ in rings)) / 2
    lanes = _lanes(config) or sum(2 if wrapped else 1 for _, _, wrapped in rings)
    hops = sum(size / 2 if wrapped else size - 1 for _, size, wrapped in rings)
    return moved * (n - 1) / n / (one * max(lanes, 1)), hops


def _lanes(config: str) -> int:
    """Links of a device that the compiler's algorithm uses at once; 0 if it is mute."""
    if match := _COLOURS.search(config):
        colours, phases = int(match[1]), int(match[2])
        return max(colours, 2 * phases)
    if match := _GATHER.search(config):
        return 2 * int(match[1])
    return 0
