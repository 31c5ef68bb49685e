"""What one instruction costs the device that runs it: cycles, FLOPs and HBM bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scaling_lab.compile import _kernels, _shapes
from scaling_lab.compile._flops import Counter
from scaling_lab.compile._module import Computation, Instruction, Module
from scaling_lab.compile.price import Efficiencies, Physics

_CYCLES = re.compile(r'"estimated_cycles":"?(-?\d+)')
#: Estimates beyond a minute of one instruction are the compiler's word for unknown.
_UNKNOWN_CYCLES = 1e11

#: Instructions that move nothing and compute nothing.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "iota", "domain", "add-dependency"),
}
_FREE_CALLS = {"ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound"}
_FREE_CALLS |= {"AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding"}
_FREE_CALLS |= {"PrepareAsyncCallStart", "PrepareAsyncCallDone", "SliceId"}
_SLICES = {"dynamic-slice", "slice", "gather"}
#: Rows and columns of the tiles that a GPU's product is cut into.
_TILE_ELEMENTS = 128 * 256


class Work:
    """Prices instructions of a module on one chip.

    Attributes:
      flops: counts FLOPs, as `Counter.of`.
    """

    def __init__(self, module: Module, facts: tuple[Physics, Efficiencies] | None):
        self.flops = Counter(module)
        self._module = module
        self._facts = facts
        self._slices: dict[str, dict[int, int]] = {}

    def scheduled_seconds(self, instruction: Instruction) -> float | None:
        """The compiler's own estimate of one execution, where it has one."""
        if self._facts is None or self._facts[0].clock_hz is None:
            return None
        match = _CYCLES.search(instruction.config)
        cycles = int(match[1]) if match else -1
        if not 0 <= cycles < _UNKNOWN_CYCLES:
            return None
        return cycles / self._facts[0].clock_hz / self._facts[1].cycles

    def modelled_seconds(
        self, computation: Computation, instruction: Instruction
    ) -> float:
        """A roofline of one execution: its FLOPs or its bytes, whichever is longer."""
        if self._facts is None or free(instruction):
            return 0.0
        physics, reached = self._facts
        moving = 0.0
        if physics.hbm_bytes_per_second:
            size = self.hbm_bytes(computation, instruction)
            moving = size / (physics.hbm_bytes_per_second * reached.memory)
        flops = self.flops.of(computation, instruction)
        rate = self._rate(computation, instruction, flops) if flops else None
        return max(moving, flops / rate if rate else 0.0) + reached.launch_seconds

    def _rate(
        self, computation: Computation, instruction: Instruction, flops: float
    ) -> float | None:
        """FLOPs a second that a product of this shape, or attention, reaches."""
        assert self._facts is not None
        physics, reached = self._facts
        peak = _peak(computation, instruction, physics)
        if peak is None:
            return None
        if _kernels.is_attention(instruction):
            if _kernels.is_triton_attention(instruction):
                return peak * reached.triton_attention
            filled = _kernels.filled(computation, instruction, physics.matrix_side)
            return peak * reached.attention * filled
        out = _kernels.elements(instruction)
        depth = flops / (2 * out)
        tiles = max(1.0, out / _TILE_ELEMENTS)
        waves = -(-tiles // physics.cores) * physics.cores / tiles
        waves = min(waves, physics.cores) if not physics.torus_dims else 1.0
        return peak * reached.matmul * depth / (depth + reached.matmul_depth) / waves

    def hbm_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """Bytes that one execution reads from device memory and writes to it.

        Of an operand that is only sliced the slice counts, and of a result that is
        only updated in place the update.
        """
        sliced = self._sliced(instruction)
        read = 0
        for place, name in enumerate(instruction.operands):
            if name in computation:
                size = _in_hbm(computation[name].shape)
                read += min(size, sliced.get(place, size))
        written = _in_hbm(instruction.shape)
        if instruction.opcode in _SLICES:
            return 2 * written
        if instruction.opcode == "dynamic-update-slice":
            return 2 * _in_hbm(computation[instruction.operands[1]].shape)
        return read + min(written, sliced.get(-1, written))

    def _sliced(self, instruction: Instruction) -> dict[int, int]:
        """Operand of a fusion -> the bytes that are used of it; the result is -1."""
        if instruction.opcode != "fusion" or not instruction.callees:
            return {}
        name = instruction.callees[0]
        if name not in self._slices:
            self._slices[name] = _used(self._module.computations[name])
        return self._slices[name]


def free(instruction: Instruction) -> bool:
    """Whether it costs nothing to run."""
    return instruction.opcode in FREE or instruction.target in _FREE_CALLS


def _used(body: Computation) -> dict[int, int]:
    users: dict[str, list[str]] = {}
    for name, each in body.items():
        for operand in each.operands:
            users.setdefault(operand, []).append(name)
    used = {}
    for name, each in body.items():
        if each.opcode != "parameter":
            continue
        sizes = [
            _use(body, body[user], seen) for user, seen in _uses(body, users, name)
        ]
        if sizes and None not in sizes:
            used[int(each.operand_text)] = sum(size or 0 for size in sizes)
    root = body[body.root]
    results = root.operands if root.opcode == "tuple" else [body.root]
    written = [_written(body, name) for name in results]
    if any(sliced for _, sliced in written):
        used[-1] = sum(size for size, _ in written)
    return used


def _written(body: Computation, name: str) -> tuple[int, bool]:
    """Bytes written of a fusion's result, and whether they are a slice of it."""
    result = body[name]
    while result.opcode in ("bitcast", "copy", "convert") and result.operands:
        result = body[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return _shapes.total_bytes(body[result.operands[1]].shape), True
    return _in_hbm(body[name].shape), False


def _uses(
    body: Computation, users: dict[str, list[str]], name: str
) -> Iterator[tuple[str, str]]:
    """Who uses an array, and under which name: a bitcast is the array by another."""
    for user in users.get(name, []):
        if body[user].opcode == "bitcast":
            yield from _uses(body, users, user)
        else:
            yield user, name


def _use(body: Computation, user: Instruction, name: str) -> int | None:
    """Bytes that one user takes of an operand; `None` for all of them."""
    if user.opcode in _SLICES and user.operands[0] == name:
        return _shapes.total_bytes(user.shape)
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0
    return None


def _in_hbm(shape: str) -> int:
    return sum(
        array.padded_bytes
        for array in _shapes.arrays(shape)
        if array.space == _shapes.HBM
    )


def _peak(
    computation: Computation, instruction: Instruction, physics: Physics
) -> float | None:
    """The peak of the precision that the first two factors have; a mask is none."""
    found = [
        array
        for name in instruction.operands
        if name in computation
        for array in _shapes.arrays(computation[name].shape)
    ]
    real = [array for array in found if "f" in array.type] or found
    bits = max((array.bits for array in real[:2]), default=16)
    peak = physics.flops_per_second.get("bfloat16")
    if bits == 8:
        key = "float8" if "f8" in real[0].type else "int8"
        return physics.flops_per_second.get(key) or peak
    # A GPU multiplies float32 as tf32, at half the rate; a TPU rounds to bfloat16.
    return peak / 2 if peak and bits == 32 and not physics.torus_dims else peak
