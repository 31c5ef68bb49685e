"""What one chip is: the fields of a chip's file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from scaling_lab.hardware import _torus


@dataclasses.dataclass(frozen=True)
class GpuFacts:
    """What XLA's GPU compiler asks a device, for one that is not there.

    Attributes:
      name: as the driver names the device.
      capability: CUDA compute capability (major, minor).
      accelerated: whether the architecture's own instructions may be used (``9.0a``).
      memory_bytes: device memory, as the driver reports it.
      clock_hz: highest clock of the multiprocessors.
      l2_bytes: second-level cache.
      shared_bytes_per_core: shared memory of a multiprocessor.
      shared_bytes_per_block: the most one block may ask for.
      fpus_per_core: float32 lanes of a multiprocessor.
      links: NVLink links that are up; 0 where unknown.
      bfloat16_ops_per_clock: of one of the four matrix units of a multiprocessor.
      source: where the numbers come from.
    """

    name: str
    capability: tuple[int, int]
    accelerated: bool
    memory_bytes: int
    clock_hz: float
    l2_bytes: int
    shared_bytes_per_core: int
    shared_bytes_per_block: int
    fpus_per_core: int
    links: int
    bfloat16_ops_per_clock: int
    source: str


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at best.

    Attributes:
      name: the key, as in a target's text.
      vendor: who makes it.
      source: where the numbers come from.
      flops_per_second: dense peak by precision; only the precisions that are known.
      hbm_bytes: device memory, decimal, as the vendor sells it.
      usable_hbm_bytes: what a program can have of it: on a TPU what its compiler
        gives out, on a GPU what the driver reports.
      hbm_bytes_per_second: peak bandwidth of that memory.
      link_bytes_per_second: one-way bandwidth of one chip into its scale-up network
        (ICI, NVLink, xGMI), all links together.
      scale_up_chips: chips that this network can join; ``None`` when unbounded.
      network_bytes_per_second: one-way bandwidth of one chip into the data-centre
        network.
      host_bytes_per_second: one-way bandwidth of one chip to its host's memory.
      torus_dims: dims of the scale-up torus; 0 when it is switched or there is none.
      torus_limits: the longest axes, rising.
      cube: the edge of the cubes that optical switches join into larger tori; 0 where
        there are none.
      cores_per_chip: tensor cores (TPU), streaming multiprocessors or compute units.
      devices_per_chip: JAX devices a chip shows to the compiler.
      clock_hz: of the matrix units, where the compiler's estimates are in cycles.
      matrix_side: rows and columns of a systolic matrix unit (TPU).
      device_kinds: how JAX's ``device.device_kind`` begins on this chip.
      aliases: other names that people and published tables use.
      compiler: whose compiler speaks for it without the chip: ``tpu``, ``gpu``,
        ``cpu``; ``None`` where there is none.
      no_compiler: why there is none, and what is left.
      compile_name: what the TPU compiler calls it.
      gpu: what the GPU compiler wants to know.
      flags: named sets of its compiler's flags; a plan compiles with the first.
      conflicts: where sources disagree: what each says, and which is taken.
      notes: what to know before trusting a number.
    """

    name: str
    vendor: str
    source: str
    flops_per_second: Mapping[str, float] = dataclasses.field(hash=False)
    hbm_bytes: int | None = None
    usable_hbm_bytes: int | None = None
    hbm_bytes_per_second: float | None = None
    link_bytes_per_second: float | None = None
    scale_up_chips: int | None = None
    network_bytes_per_second: float | None = None
    host_bytes_per_second: float | None = None
    torus_dims: int = 0
    torus_limits: tuple[int, ...] = ()
    cube: int = 0
    cores_per_chip: int | None = None
    devices_per_chip: int = 1
    clock_hz: float | None = None
    matrix_side: int | None = None
    device_kinds: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    compiler: str | None = None
    no_compiler: str = ""
    compile_name: str = ""
    gpu: GpuFacts | None = None
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    conflicts: tuple[str, ...] = ()
    notes: str = ""

    @property
    def example(self) -> str:
        """The text of a small target of this chip."""
        if self.torus_dims:
            return f"{self.name}:{'x'.join(['4'] * self.torus_dims)}"
        if self.scale_up_chips is None:
            return f"{self.name}:8"
        return f"{self.name}:2x{self.scale_up_chips}"

    @property
    def link_class(self) -> str:
        """The name of its scale-up network: ``ici``, ``nvlink``, ``xgmi`` or ``""``."""
        names = {"Google": "ici", "NVIDIA": "nvlink", "AMD": "xgmi"}
        return names.get(self.vendor, "")

    @property
    def planned_flags(self) -> str:
        """Flags that a plan compiles with, to hide communication as is predicted."""
        return next(iter(self.flags.values()), "")

    @property
    def axis_bytes_per_second(self) -> float | None:
        """One-way bandwidth of one chip along one torus axis, to both neighbours."""
        if not self.torus_dims or self.link_bytes_per_second is None:
            return None
        return self.link_bytes_per_second / self.torus_dims

    @property
    def device_hbm_bytes(self) -> int | None:
        """What a program can have of one JAX device's memory."""
        whole = self.usable_hbm_bytes or self.hbm_bytes
        return None if whole is None else whole // self.devices_per_chip

    def topologies(self) -> tuple[tuple[int, ...], ...]:
        """Every torus this chip comes in, rising; nothing where there is no torus."""
        if not self.torus_dims or self.scale_up_chips is None:
            return ()
        return _torus.shapes(self.torus_limits, self.cube, self.scale_up_chips)

    def wraps(self, topology: tuple[int, ...]) -> tuple[bool, ...]:
        """Which axes of a torus close into a ring.

        Cubes are joined by switches that close every axis; a slice smaller than a cube
        is a plain mesh. Without cubes only an axis of the pod's whole length closes.
        """
        if self.cube:
            return (_torus.of_cubes(topology, self.cube),) * len(topology)
        return tuple(size == self.torus_limits[-1] for size in topology)

    def chips_per_host(self, topology: tuple[int, ...]) -> int:
        """How many chips of a slice or node share one host."""
        if self.torus_dims:
            return min(math.prod(topology), 4)
        return topology[-1]
