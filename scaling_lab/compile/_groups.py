"""Replica groups: who works with whom, and along which axes of the mesh that is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from scaling_lab.compile._module import Instruction
from scaling_lab.layouts.mesh import ACROSS_SLICES

#: In the attributes of what a TPU sends from slice to slice.
CROSSES = "_xla_megascale_transfer_type="

#: The axes of groups that are no product of whole mesh axes.
UNKNOWN = ("unknown",)

_EXPLICIT = re.compile(r"\breplica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"\breplica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}"
)
_PAIRS = re.compile(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")

Groups = list[list[int]]


def within_slice(module_text: str, mesh_axes: Mapping[str, int]) -> dict[str, int]:
    """The mesh of the devices that a module's partitions number.

    That is the whole mesh; but of several slices each has a module of its own, and
    what crosses them is sent over the data-centre network (`CROSSES`).

    Raises:
      ValueError: the module was compiled for another number of devices.
    """
    devices = math.prod(mesh_axes.values())
    found = re.search(r"num_partitions=(\d+)", module_text.partition("\n")[0])
    partitions = int(found[1]) if found else devices
    left, over = divmod(devices, partitions)
    if over or (left > 1 and CROSSES not in module_text):
        raise ValueError(
            f"the module has {partitions} partitions but the mesh {dict(mesh_axes)} "
            f"has {devices} devices; pass the mesh that it was compiled for"
        )
    inner = dict(mesh_axes)
    for axis in sorted(mesh_axes, key=lambda axis: rank(ACROSS_SLICES, axis)):
        part = math.gcd(inner[axis], left)
        inner[axis] //= part
        left //= part
    return inner


def rank(order: tuple[str, ...], axis: str) -> int:
    """An axis's place in an order of axes; one that is not in it is like data."""
    return order.index(axis if axis in order else "data")


def axes_of(
    groups: Groups, mesh_axes: Mapping[str, int], *, pairs: bool = False
) -> tuple[str, ...]:
    """The mesh axes along which groups of partitions run, in mesh order.

    Args:
      groups: partition numbers that work together, or (source, target) `pairs`.
      mesh_axes: axis name to size, in the order of the mesh's device array.
      pairs: whether it is enough that sources and targets differ along the axes;
        otherwise the groups must be all the lines, planes, … of those axes.

    Returns:
      Nothing where no group has two devices, `UNKNOWN` where no axes fit.

    Raises:
      ValueError: a partition that the mesh does not have.
    """
    sizes = tuple(mesh_axes.values())
    highest = max((max(group) for group in groups if group), default=0)
    if highest >= math.prod(sizes):
        raise ValueError(
            f"a collective names partition {highest}, but the mesh {dict(mesh_axes)} "
            f"has {math.prod(sizes)} devices; pass the mesh that it was compiled for"
        )
    varies = np.zeros(len(sizes), dtype=bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.array(group, dtype=int), sizes))
        varies |= (places != places[:, :1]).any(axis=1)
    axes = tuple(name for name, moves in zip(mesh_axes, varies, strict=True) if moves)
    if pairs or not axes:
        return axes
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    last = np.concatenate([np.flatnonzero(~varies), np.flatnonzero(varies)])
    width = math.prod(mesh_axes[name] for name in axes)
    whole = ids.transpose(last).reshape(-1, width).tolist()
    return (
        axes if set(map(frozenset, groups)) == set(map(frozenset, whole)) else UNKNOWN
    )


def iota_groups(text: str) -> Groups:
    """The groups written ``[groups,size]<=[dims]T(order)``: an iota, transposed.

    Raises:
      ValueError: the text is something else.
    """
    match = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not match:
        raise ValueError(f"not iota replica groups: {text!r}; as in '[4,2]<=[8]'")
    shape, dims = _integers(match[1]), _integers(match[2])
    order = _integers(match[3]) if match[3] else range(len(dims))
    ids = np.arange(math.prod(dims)).reshape(dims).transpose(list(order))
    return ids.reshape(shape[0], -1).tolist()


def _mesh_groups(axes_text: str, ids_text: str | None, grouped_text: str) -> Groups:
    """The groups written ``mesh['a'=2,'b'=4] {'b'}``; ``'b':(2)2`` is part of an axis.

    A part ``'b':(before)size`` is the middle of b, split as before x size x rest.
    """
    axes = re.findall(r"'?([^',=]+)'?=(\d+)", axes_text)
    parts = re.findall(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?", grouped_text)
    dims: list[int] = []
    grouped: list[bool] = []
    for name, size in axes:
        left = int(size)
        wanted = [(int(b or 1), int(s or size)) for part, b, s in parts if part == name]
        for before, width in sorted(wanted):
            skipped = before * left // int(size)
            dims += [skipped, width]
            grouped += [False, True]
            left //= skipped * width
        dims.append(left)
        grouped.append(False)
    ids = np.array(_device_ids(ids_text, math.prod(dims)))
    order = np.argsort(grouped, kind="stable").tolist()
    width = math.prod(dim for dim, inside in zip(dims, grouped, strict=True) if inside)
    return ids.reshape(dims).transpose(order).reshape(-1, width).tolist()


def _device_ids(text: str | None, count: int) -> list[int]:
    """A mesh's devices: in order, listed, or an iota transposed (``[2,4]T(1,0)``)."""
    if not text:
        return list(range(count))
    if "T(" in text:
        return iota_groups(f"[1,{count}]<={text}")[0]
    return _integers(text)


def groups_of(instruction: Instruction, devices: int) -> Groups:
    """Which partitions work together; pairs of (source, target) for a permute."""
    text = instruction.attributes
    if match := _PAIRS.search(text) or _EXPLICIT.search(text):
        groups = [_integers(each) for each in re.findall(r"\{([\d,]*)\}", match[1])]
    elif match := _IOTA.search(text):
        groups = iota_groups(match[1])
    elif match := _MESH.search(text):
        groups = _mesh_groups(match[1], match[2], match[3])
    elif "replica_groups=" not in text:
        groups = []
    else:
        raise ValueError(
            f"replica groups in a form that is not known: {text[:200]!r}; "
            "scaling_lab/compile/hlo.py reads lists, iotas and meshes"
        )
    # With a channel but no global ids, groups are of replicas and span partitions.
    replicas = groups == [[0]] and "channel_id=" in text
    if not groups or (replicas and "use_global_device_ids=true" not in text):
        return [list(range(devices))]
    return groups


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
