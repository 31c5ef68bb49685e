"""Reads an optimized, partitioned HLO module: which collectives, where, how often.

The text is ``compiled.as_text()``, from CPU, GPU or TPU. Bytes are per device and
step, of what an operation is about and not of what a ring would send: the operand of
an all-reduce, reduce-scatter, all-to-all or permute, the gathered result of an
all-gather, the smaller of both of a ragged all-to-all, padding included, times the
executions. Counted once: an asynchronous
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

from scaling_lab.compile._groups import CROSSES, groups_of, within_slice
from scaling_lab.compile._groups import UNKNOWN as UNKNOWN
from scaling_lab.compile._groups import axes_of as axes_of
from scaling_lab.compile._groups import iota_groups as iota_groups
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

_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,<=]*)\]")


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
    inner = within_slice(module_text, mesh_axes)
    found = []
    for visit in visits(module):
        one = of_instruction(
            visit.instruction, visit.computation, inner, crossing(inner, mesh_axes)
        )
        if one is not None:
            kind, axes, size = one
            found.append(
                Collective(
                    kind=kind,
                    axes=axes,
                    count=visit.count,
                    bytes=size * visit.count,
                    op_name=visit.op_name,
                    source=module.source(visit.instruction),
                    loop=visit.loop,
                    trip_count_known=visit.known,
                )
            )
    return found


def crossing(inner: Mapping[str, int], mesh_axes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes that cross slices: those that are smaller inside one."""
    return tuple(axis for axis in mesh_axes if inner[axis] < mesh_axes[axis])


def of_instruction(
    instruction: Instruction,
    computation: Computation,
    inner: Mapping[str, int],
    across: tuple[str, ...] = (),
) -> tuple[str, tuple[str, ...], int] | None:
    """Kind, axes and bytes of one execution; `None` where nothing is moved.

    Args:
      inner: the mesh that partitions number (see `within_slice`).
      across: the axes that cross slices.
    """
    if instruction.opcode == "send" and CROSSES in instruction.attributes:
        kind = instruction.attribute(CROSSES + r'"(\w+)"').lower().replace("_", "-")
        size = shape_bytes(computation[instruction.operands[0]].shape)
        return kind, across, size
    kind = _kind(instruction, computation)
    if kind is None:
        return None
    groups = groups_of(instruction, math.prod(inner.values()))
    axes = axes_of(groups, inner, pairs=kind == "collective-permute")
    if not axes:
        return None
    return kind, axes, _bytes(kind, instruction, computation, len(groups[0]))


def kernel_bytes(module_text: str) -> int:
    """Bytes that hand-written TPU kernels read and write, per device and step."""
    return sum(
        visit.count
        * sum(
            shape_bytes(shape)
            for shape in (
                visit.instruction.shape,
                *(visit.computation[n].shape for n in visit.instruction.operands),
            )
        )
        for visit in visits(Module(module_text))
        if visit.instruction.target == "tpu_custom_call"
    )


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


def in_branches(module_text: str) -> list[str]:
    """Collectives that stand in a branch of a conditional, as ``kind, op_name``.

    Devices may take different branches, and then a collective there is met by some of
    them alone. Simulated devices, TPUs and GPUs each have their own way with that.
    """
    module = Module(module_text)
    pending = [
        name
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "conditional"
        for name in instruction.callees
    ]
    found, seen = [], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for instruction in module.computations[name].values():
            pending += instruction.callees
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                found.append(f"{kind}, {instruction.op_name}")
    return sorted(found)


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
    if kind == "ragged-all-to-all":
        # The larger of both arrays has room for the worst, the smaller only for what
        # there is. The rest says where and how much.
        return min(shape_bytes(computation[name].shape) for name in operands[:2])
    if "slice_sizes=" in instruction.attributes:
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
