"""Chips, one file each, and the targets made of them (standard library only).

A chip's key is its file's name with '-' for '_': ``tpu_v5p.py`` is ``tpu-v5p``. To
add one, write one file that offers ``CHIP``. Numbers are the vendor's: dense peaks,
decimal gigabytes, one direction of a link. What is not known is ``None``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Mapping

#: What a target is when it means the devices of this machine.
LOCAL = "local"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at best.

    Attributes:
      name: the key, as in a target's text.
      vendor: who makes it.
      source: where the numbers come from.
      flops_per_second: dense peak by precision; only the precisions that are known.
      hbm_bytes: device memory, decimal.
      hbm_bytes_per_second: peak bandwidth of that memory.
      link_bytes_per_second: one-way bandwidth of one chip into its scale-up network
        (ICI, NVLink, xGMI), all links together.
      scale_up_chips: chips that this network can join; ``None`` when unbounded.
      network_bytes_per_second: one-way bandwidth of one chip into the data-centre
        network.
      torus_dims: dims of the scale-up torus; 0 when it is switched or there is none.
      cores_per_chip: tensor cores (TPU), streaming multiprocessors or compute units.
      devices_per_chip: JAX devices a chip shows to the compiler.
      device_kinds: how JAX's ``device.device_kind`` begins on this chip.
      notes: what to know before trusting a number.
    """

    name: str
    vendor: str
    source: str
    flops_per_second: Mapping[str, float] = dataclasses.field(hash=False)
    hbm_bytes: int | None = None
    hbm_bytes_per_second: float | None = None
    link_bytes_per_second: float | None = None
    scale_up_chips: int | None = None
    network_bytes_per_second: float | None = None
    torus_dims: int = 0
    cores_per_chip: int | None = None
    devices_per_chip: int = 1
    device_kinds: tuple[str, ...] = ()
    notes: str = ""

    @property
    def example(self) -> str:
        """The text of a small target of this chip."""
        if self.torus_dims:
            return f"{self.name}:{'x'.join(['4'] * self.torus_dims)}"
        if self.scale_up_chips is None:
            return f"{self.name}:8"
        return f"{self.name}:2x{self.scale_up_chips}"


@dataclasses.dataclass(frozen=True)
class Target:
    """The machine that is meant: so many of one chip, joined so.

    Attributes:
      chip: the chip, or ``None`` for the devices present.
      topology: chips along each torus dim; (nodes, GPUs in a node); or (devices,).
      slices: separate slices joined by the data-centre network.
    """

    chip: Chip | None
    topology: tuple[int, ...] = ()
    slices: int = 1

    def __post_init__(self) -> None:
        if self.chip is not None:
            _check(self.chip, self.topology, self.slices)
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
    return tuple(sorted(name.replace("_", "-") for name in modules))


@functools.cache
def chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
      ValueError: there is no such chip; the message names the nearest and all.
    """
    if name not in chips():
        near = difflib.get_close_matches(name, chips(), n=3, cutoff=0.5)
        hint = f" did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"unknown chip {name!r};{hint} the chips are {', '.join(chips())}"
        )
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").CHIP


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


def _check(chip: Chip, topology: tuple[int, ...], slices: int) -> None:
    """Raises ValueError unless the chip can be joined so."""
    text = f"{chip.name}:{'x'.join(map(str, topology))}"
    text += f"*{slices}" if slices != 1 else ""
    example = f"; for example {chip.example!r}"
    if min((*topology, slices)) < 1:
        raise ValueError(f"target {text!r}: every size is at least 1{example}")
    wanted, words = _form(chip)
    if len(topology) != wanted:
        raise ValueError(
            f"target {text!r} has {len(topology)} dim(s), but {words}{example}"
        )
    if slices > 1 and not chip.torus_dims:
        raise ValueError(
            f"target {text!r}: only TPUs come in slices, not {chip.name}{example}"
        )
    joined = math.prod(topology) if chip.torus_dims else topology[-1]
    if chip.scale_up_chips is not None and joined > chip.scale_up_chips:
        more = "slices ('*2')" if chip.torus_dims else "nodes (the first size)"
        raise ValueError(
            f"target {text!r} joins {joined} chips, but at most "
            f"{chip.scale_up_chips} {chip.name} chips share one scale-up network; "
            f"ask for more {more}{example}"
        )


def _form(chip: Chip) -> tuple[int, str]:
    """How many sizes a topology of this chip has, and the sentence that says why."""
    if chip.torus_dims:
        return chip.torus_dims, f"the torus of {chip.name} has {chip.torus_dims} dims"
    if chip.scale_up_chips is None:
        return 1, f"{chip.name} takes one size, the number of devices"
    return 2, f"{chip.name} takes two sizes, nodes x chips in a node"
