"""A layout's mesh on real devices, and shardings on that mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scaling_lab.layouts.tables import IllegalLayout, Layout, Spec


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
    axes = dict(layout.mesh) or {"data": 1}
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(axis_type,) * len(axes),
        devices=devices[: layout.devices],
    )


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
