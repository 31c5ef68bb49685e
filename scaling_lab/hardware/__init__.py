"""Chips, one file each, and the targets made of them (standard library only).

A chip's key is its file's name with '-' for '_': ``tpu_v5p.py`` is ``tpu-v5p``. To
add one, write one file that offers ``CHIP``. Numbers are the vendor's: dense peaks,
decimal gigabytes, one direction of a link. What is not known is ``None``; where
sources disagree, the chip's `conflicts` say how.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import math
import pkgutil
import re

from scaling_lab.hardware import _torus
from scaling_lab.hardware._chip import Chip as Chip
from scaling_lab.hardware._chip import GpuFacts as GpuFacts

#: What a target is when it means the devices of this machine.
LOCAL = "local"


@dataclasses.dataclass(frozen=True)
class Target:
    """The machine that is meant: so many of one chip, joined so.

    Attributes:
      chip: the chip, or ``None`` for the devices present.
      topology: chips along each torus dim; (nodes, GPUs in a node); or (devices,). A
        torus is kept as its vendor writes it: 8x4x4 becomes 4x4x8.
      slices: separate slices joined by the data-centre network.
    """

    chip: Chip | None
    topology: tuple[int, ...] = ()
    slices: int = 1

    def __post_init__(self) -> None:
        if self.chip is not None:
            topology = _check(self.chip, self.topology, self.slices)
            object.__setattr__(self, "topology", topology)
        elif self.topology or self.slices != 1:
            raise ValueError(
                f"target {LOCAL!r} takes no topology or slices: it means the devices "
                "present; name a chip instead, as in 'cpu:8'"
            )

    @classmethod
    def parse(cls, text: str) -> Target:
        """Reads ``chip:topology[*slices]`` or ``local``; see `parse_target`."""
        return parse_target(text)

    @property
    def chips(self) -> int | None:
        """How many chips, all slices together; ``None`` for ``local``."""
        if self.chip is None:
            return None
        return math.prod(self.topology) * self.slices

    @property
    def devices(self) -> int | None:
        """How many JAX devices, all slices together; ``None`` for ``local``."""
        if self.chip is None or self.chips is None:
            return None
        return self.chips * self.chip.devices_per_chip

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which axes of the torus close into a ring; nothing where there is none."""
        if self.chip is None or not self.chip.torus_dims:
            return ()
        return self.chip.wraps(self.topology)

    @property
    def simulated(self) -> bool:
        """Whether the devices only pretend to be chips (``cpu:8``)."""
        return self.chip is not None and self.chip.name == "cpu"

    @property
    def text(self) -> str:
        """The canonical text: ``parse_target(target.text) == target``."""
        if self.chip is None:
            return LOCAL
        slices = f"*{self.slices}" if self.slices > 1 else ""
        return f"{self.chip.name}:{'x'.join(map(str, self.topology))}{slices}"


def chips() -> tuple[str, ...]:
    """The names of all chips, sorted: one for every file of this folder."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    own = (name for name in modules if not name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in own))


@functools.cache
def chip(name: str) -> Chip:
    """The chip of that name or alias (``a100-80gb``, ``trillium``).

    Raises:
      ValueError: there is no such chip; the message names the nearest and all.
    """
    found = _of_file(name) if name in chips() else _aliases().get(name)
    if found is not None:
        return found
    known = [*chips(), *_aliases()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown chip {name!r};{hint} the chips are {', '.join(chips())}")


def _of_file(name: str) -> Chip:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").CHIP


@functools.cache
def _aliases() -> dict[str, Chip]:
    every = map(_of_file, chips())
    return {alias: found for found in every for alias in found.aliases}


def chip_for(device_kind: str) -> Chip | None:
    """The chip behind JAX's ``device.device_kind``, or ``None`` if no file knows it.

    The longest matching beginning wins: ``TPU v5 lite`` before ``TPU v5``.
    """
    kind = device_kind.casefold()
    matches = [
        (len(prefix), name)
        for name in chips()
        for prefix in chip(name).device_kinds
        if kind.startswith(prefix.casefold())
    ]
    return chip(max(matches)[1]) if matches else None


def parse_target(text: str) -> Target:
    """Reads ``chip:topology[*slices]`` or ``local``.

    ``tpu-v5p:4x4x4`` is a torus, ``tpu-v6e:16x16*2`` two slices, ``h100:8x8`` eight
    nodes of eight GPUs, ``cpu:8`` eight simulated devices.

    Raises:
      ValueError: no such chip, or a topology that this chip cannot have.
    """
    text = text.strip().lower()
    if text == LOCAL:
        return Target(None)
    name, _, shape = text.partition(":")
    found = chip(name)
    match = re.fullmatch(r"(-?\d+(?:x-?\d+)*)(?:\*(-?\d+))?", shape, re.ASCII)
    if not match:
        raise ValueError(
            f"target {text!r}: {shape!r} is not a topology; write sizes joined by "
            f"'x', as in {found.example!r}"
        )
    topology = tuple(int(size) for size in match[1].split("x"))
    return Target(found, topology, int(match[2] or 1))


def target_of(name: str, chip_count: int) -> Target:
    """The usual machine of so many chips: full nodes, or the most cubic torus.

    More chips than one scale-up network joins become slices or nodes.

    Raises:
      ValueError: no machine has that number; the message names the nearest that do.
    """
    found = chip(name)
    joined = found.scale_up_chips
    if joined is None:
        return Target(found, (chip_count,))
    if not found.torus_dims:
        in_node = min(joined, chip_count)
        while chip_count % in_node:
            in_node -= 1
        return Target(found, (chip_count // in_node, in_node))
    known = found.topologies()
    # Nobody joins slices of less than a cube or a square over the slow network.
    for slices in (1, *range(2, chip_count // 4**found.torus_dims + 1)):
        shape = _torus.most_cubic(chip_count // slices, known)
        if chip_count % slices == 0 and shape:
            return Target(found, shape, slices)
    sizes = sorted({math.prod(shape) for shape in known})
    near = sorted(sizes, key=lambda size: abs(size - chip_count))[:3]
    raise ValueError(
        f"no {name} slice has {chip_count} chips; the nearest have "
        f"{', '.join(map(str, sorted(near)))}"
    )


def _check(found: Chip, topology: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """The topology as it is written; ValueError unless the chip can be joined so."""
    text = f"{found.name}:{'x'.join(map(str, topology))}"
    text += f"*{slices}" if slices != 1 else ""
    example = f"; for example {found.example!r}"
    if min((*topology, slices)) < 1:
        raise ValueError(f"target {text!r}: every size is at least 1{example}")
    wanted, words = _form(found)
    if len(topology) != wanted:
        raise ValueError(
            f"target {text!r} has {len(topology)} dim(s), but {words}{example}"
        )
    if slices > 1 and not found.torus_dims:
        raise ValueError(
            f"target {text!r}: only TPUs come in slices, not {found.name}{example}"
        )
    joined = math.prod(topology) if found.torus_dims else topology[-1]
    if found.scale_up_chips is not None and joined > found.scale_up_chips:
        more = "slices ('*2')" if found.torus_dims else "nodes (the first size)"
        raise ValueError(
            f"target {text!r} joins {joined} chips, but at most "
            f"{found.scale_up_chips} {found.name} chips share one scale-up network; "
            f"ask for more {more}{example}"
        )
    if not found.torus_dims:
        return topology
    known = found.topologies()
    written = _torus.written(topology, known)
    if written is None:
        near = _torus.nearest(topology, known)
        raise ValueError(
            f"target {text!r}: there is no such slice of {found.name}; the nearest "
            f"are {', '.join('x'.join(map(str, shape)) for shape in near)}"
        )
    return written


def _form(chip: Chip) -> tuple[int, str]:
    """How many sizes a topology of this chip has, and the sentence that says why."""
    if chip.torus_dims:
        return chip.torus_dims, f"the torus of {chip.name} has {chip.torus_dims} dims"
    if chip.scale_up_chips is None:
        return 1, f"{chip.name} takes one size, the number of devices"
    return 2, f"{chip.name} takes two sizes, nodes x chips in a node"
