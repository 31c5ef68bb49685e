"""Reads an optimized, partitioned HLO module: which collectives, where, how often.

The text is ``compiled.as_text()``, from CPU, GPU or TPU. Bytes are per device and
step, of what an operation is about and not of what a ring would send: the operand of
an all-reduce, reduce-scatter, all-to-all or permute, the gathered result of an
all-gather, padding included, times the executions. Counted once: an asynchronous
start and its done; each branch of a conditional, though one of them runs. Groups of
one device move nothing and are left out.

Replica groups hold partition numbers, which are places in ``mesh.devices.flat`` and
not device ids, so the mesh's axis sizes in their order are enough to name them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scaling_lab.compile._module import Computation, Instruction, Module
from scaling_lab.compile._trips import visits

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

#: The axes of groups that are no product of whole mesh axes.
UNKNOWN = ("unknown",)

_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,<=]*)\]")
_EXPLICIT = re.compile(r"\breplica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"\breplica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}"
)
_PAIRS = re.compile(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")

Groups = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction as it is reached from the entry.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes it runs over, in mesh order, or `UNKNOWN`.
      count: executions a step: the trips of the enclosing loops multiplied.
      bytes: bytes per device and step, all executions together.
      op_name: the name it was traced under, or "".
      source: "file:line", where the module says so.
      loop: the body computation of the innermost enclosing loop.
      trip_count_known: whether every enclosing loop's trips were read, none assumed.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    op_name: str = ""
    source: str | None = None
    loop: str | None = None
    trip_count_known: bool = True


def collectives(module_text: str, mesh_axes: Mapping[str, int]) -> list[Collective]:
    """Every collective of a module, in the order the entry reaches them.

    Args:
      module_text: an optimized, partitioned module.
      mesh_axes: axis name to size, in the order of the mesh's device array.

    Raises:
      ValueError: not a module, one with another number of partitions than the mesh
        has devices, or replica groups in a form that is not known.
    """
    module = Module(module_text)
    devices = math.prod(mesh_axes.values())
    partitions = re.search(r"num_partitions=(\d+)", module_text.partition("\n")[0])
    if partitions and int(partitions[1]) != devices:
        raise ValueError(
            f"the module has {partitions[1]} partitions but the mesh {dict(mesh_axes)} "
            f"has {devices} devices; pass the mesh that it was compiled for"
        )
    found = []
    for visit in visits(module):
        instruction, computation = visit.instruction, visit.computation
        kind = _kind(instruction, computation)
        groups = _groups(instruction, devices) if kind else []
        axes = axes_of(groups, mesh_axes, pairs=kind == "collective-permute")
        if kind and axes:
            size = _bytes(kind, instruction, computation, len(groups[0]))
            found.append(
                Collective(
                    kind=kind,
                    axes=axes,
                    count=visit.count,
                    bytes=size * visit.count,
                    op_name=visit.op_name,
                    source=module.source(instruction),
                    loop=visit.loop,
                    trip_count_known=visit.known,
                )
            )
    return found


def by_kind_and_axis(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Rows of kind, axes, count and bytes, merged and sorted, as plain JSON."""
    rows: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
    for item in found:
        count, size = rows.get((item.kind, item.axes), (0, 0))
        rows[item.kind, item.axes] = (count + item.count, size + item.bytes)
    return [
        {"kind": kind, "axes": list(axes), "count": count, "bytes": size}
        for (kind, axes), (count, size) in sorted(rows.items())
    ]


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


def _groups(instruction: Instruction, devices: int) -> Groups:
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


def _kind(instruction: Instruction, computation: Computation) -> str | None:
    """The kind of collective, or `None` where it is none or counted elsewhere."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if "chain_id=" in instruction.attributes:
        # TPU repeats a collective in each fusion it overlaps: only its start counts.
        starts = [
            computation.get(name) is instruction
            for other in computation.values()
            if '"AsyncCollectiveStart"' in other.attributes
            for name in other.operands
        ]
        if not any(starts):
            return None
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # TPU: fused with the slice that follows it
    return kind


def _bytes(
    kind: str, instruction: Instruction, computation: Computation, group_size: int
) -> int:
    """Bytes per device of one execution, as the module docstring counts them.

    They are taken from the operands, since an asynchronous start has a tuple of
    operands, results and contexts for its shape.
    """
    operands = instruction.operands
    if kind == "ragged-all-to-all" or "slice_sizes=" in instruction.attributes:
        operands = operands[:1]  # the others say where and how much
    total = sum(shape_bytes(computation[name].shape) for name in operands)
    return total * group_size if kind == "all-gather" else total


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape such as ``(bf16[8,128]{1,0:T(8,128)}, s32[])``.

    Four-bit types count half a byte; tokens and opaque values count nothing.
    """
    total = 0
    for letters, bits, dims in _ARRAY.findall(shape):
        width = 8 if letters == "pred" else int(bits or 0)
        count = math.prod(_integers(dims.replace("<=", "")))
        total += -(-width * count // 8)
    return total


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
