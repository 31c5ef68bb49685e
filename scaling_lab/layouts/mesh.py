"""A layout's mesh on devices, where its busiest axes get the closest links.

A mesh's axes keep the order the layout names them in; which device stands where
follows the machine. On a torus an axis takes whole physical axes where it can and a
part of one where it must; on nodes of GPUs the busiest axes stay inside a node; over
slices goes what sends least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scaling_lab.layouts.tables import IllegalLayout, Layout, Spec

#: Axes by how much they send, rising: the last gets the closest links. An axis that is
#: not named here sends like data.
RISING = ("stage", "data", "fsdp", "expert", "context", "tensor")

#: Axes by how well they bear the network between slices: gradients once a step, then
#: activations between stages, then weights and gradients of every layer.
ACROSS_SLICES = ("data", "stage", "fsdp", "expert", "context", "tensor")


def make_mesh(
    layout: Layout,
    devices: Sequence[Any] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """The layout's mesh on the first devices there are.

    Raises:
      IllegalLayout: more devices asked than there are.
    """
    devices = jax.devices() if devices is None else devices
    if layout.devices > len(devices):
        raise IllegalLayout(
            f"layout {layout.name!r} asks for {layout.devices} devices and there are "
            f"{len(devices)}; to simulate them on the CPU start with "
            f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={layout.devices}, or pass "
            f"--target cpu:{layout.devices}"
        )
    return mesh_of(dict(layout.mesh) or {"data": 1}, devices, axis_type)


def mesh_of(
    axes: Mapping[str, int],
    devices: Sequence[Any],
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """A mesh of these axes, in this order, on the first of these devices."""
    chosen = list(devices)[: math.prod(axes.values())]
    rising = sorted(axes, key=lambda name: _rank(RISING, name))
    arranged = _arrange({name: axes[name] for name in rising}, chosen)
    array = arranged.transpose([rising.index(name) for name in axes])
    return Mesh(array, tuple(axes), axis_types=(axis_type,) * len(axes))


def links(mesh: Mesh) -> dict[str, str]:
    """Which network each axis runs over: ``dcn``, ``ici``, ``nvlink`` or ``host``.

    An axis that crosses slices or nodes anywhere is held up by that crossing, so it
    counts as ``dcn``.
    """
    found = {}
    for number, name in enumerate(mesh.axis_names):
        lines = np.moveaxis(mesh.devices, number, -1).reshape(-1, mesh.shape[name])
        crosses = any(len({_domain(device) for device in line}) > 1 for line in lines)
        near = {"tpu": "ici", "gpu": "nvlink"}.get(lines[0][0].platform, "host")
        found[name] = "dcn" if crosses else near
    return found


def _domain(device: Any) -> int:
    """What a device shares its closest network with: its slice or its node."""
    if device.platform == "tpu":
        return getattr(device, "slice_index", None) or 0
    return device.process_index if device.platform == "gpu" else 0


def _rank(order: Sequence[str], axis: str) -> int:
    return order.index(axis if axis in order else "data")


def _arrange(axes: Mapping[str, int], devices: list[Any]) -> np.ndarray:
    """Devices in the shape of axes that send ever more."""
    shape = tuple(axes.values())
    if devices[0].platform != "tpu":
        # Numbered node by node, so the last axes stay inside a node.
        return np.array(devices).reshape(shape)
    if devices[0].device_kind == "TPU v4" and any(d.core_on_chip for d in devices):
        return _both_cores(axes, devices)
    slices = len({_domain(device) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    across = _across(axes, slices)
    within = tuple(size // over for size, over in zip(shape, across, strict=True))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def _both_cores(axes: Mapping[str, int], devices: list[Any]) -> np.ndarray:
    """Chips that show two devices each, where JAX would arrange only one of them.

    The cores of a chip share its memory, so the axis that sends most runs over them.

    Raises:
      IllegalLayout: no axis is even.
    """
    even = [number for number, size in enumerate(axes.values()) if size % 2 == 0]
    if not even:
        raise IllegalLayout(f"mesh {dict(axes)}: two cores a chip need an even axis")
    paired, halves = even[-1], dict(axes)
    halves[list(axes)[paired]] //= 2
    place = {(_domain(d), *d.coords, d.core_on_chip): d for d in devices}
    chips = _arrange(halves, [d for d in devices if d.core_on_chip == 0])
    both = [[place[_domain(d), *d.coords, core] for core in (0, 1)] for d in chips.flat]
    array = np.array(both).reshape(*chips.shape, 2)
    return np.moveaxis(array, -1, paired + 1).reshape(tuple(axes.values()))


def _across(axes: Mapping[str, int], slices: int) -> tuple[int, ...]:
    """How many parts of each axis lie in different slices.

    All of the slices are used, so their number divides over the axes somehow.
    """
    over = dict.fromkeys(axes, 1)
    left = slices
    for name in sorted(axes, key=lambda name: _rank(ACROSS_SLICES, name)):
        over[name] = math.gcd(axes[name], left)
        left //= over[name]
    return tuple(over.values())


def partition(spec: Spec) -> PartitionSpec:
    """A spec of the tables as JAX writes it."""
    return PartitionSpec(
        *(axes[0] if len(axes) == 1 else (axes or None) for axes in spec)
    )


def sharding(
    layout: Layout, mesh: Mesh, kind: str, letters: str, name: str = ""
) -> NamedSharding:
    """Where the array of these dims rests, by the table `kind`."""
    return NamedSharding(mesh, partition(layout.spec(kind, letters, name)))
