"""FLOPs of kernels, which the compiler does not see into: GEMM calls, attention, ours.

A kernel that says what it costs is believed. Of attention what is computed counts, in
whole blocks of its mask: a causal one is taken wherever the kernel skips blocks.
"""

from __future__ import annotations

import json
import math
import re

from scaling_lab.compile import _shapes
from scaling_lab.compile._module import Computation, Instruction

_SAYS = re.compile(r'"cost_estimate":\s*(\{[^}]*\})')
#: What a kernel of ours on a GPU says, `parallel.experts.tiled` and `parallel.triton`.
_TOLD = re.compile(r"\\22(\w+)\\22: \\22(\d+)\\22")
#: Names of `parallel.triton`'s kernels, wherever transforms leave them.
_FLASH = re.compile(r"\bflash_(forward|of_queries|of_keys)\b")
_WINDOW = re.compile(r'"sliding_window_length":\s*(\d+)')
_BLOCK = re.compile(r"block_(q|kv)(_dkv|_dq)?\W+(\d+)")
#: Products of rows by their groups' weights on a TPU, and what `parallel.experts` says
#: of them: how many of the rows that there is room for come in the mean.
_GROUPED = re.compile(r"ragged|gmm")
_ROWS = re.compile(r"rows_(\d+)_of_(\d+)")
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')


def is_attention(instruction: Instruction) -> bool:
    """Whether it is a fused attention: cuDNN's, or a Pallas kernel."""
    if _GROUPED.search(instruction.op_name):
        return False
    fused = "fmha" in instruction.target or instruction.target == "tpu_custom_call"
    return fused or is_triton_attention(instruction)


def is_triton_attention(instruction: Instruction) -> bool:
    """Whether it is `parallel.triton`'s."""
    return "triton" in instruction.target and bool(_FLASH.search(instruction.op_name))


def flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of one call; 0 of a kernel that is not known and says nothing."""
    if match := _SAYS.search(instruction.config):
        said = float(json.loads(match[1]).get("flops", 0))
        if said > 0:
            rows, room = _rows(instruction)
            return said * rows / room
    if said := _told(instruction).get("flops"):
        return float(said)
    operands = [
        array
        for name in instruction.operands
        for array in _shapes.arrays(computation[name].shape)[:1]
    ]
    if "gemm" in instruction.target or "matmul" in instruction.target:
        return _gemm(instruction, operands)
    return _attention(instruction, operands) if is_attention(instruction) else 0.0


def elements(instruction: Instruction) -> int:
    """Numbers of its result that a kernel says it makes; of another all there are."""
    if told := _told(instruction).get("elements"):
        return told
    largest = max(_shapes.arrays(instruction.shape), key=lambda array: array.elements)
    rows, room = _rows(instruction)
    of_rows = len(largest.dims) == 2 and largest.dims[0] == room
    return largest.elements * rows // room if of_rows else largest.elements


def _rows(instruction: Instruction) -> tuple[int, int]:
    """Of a grouped product the rows that come in the mean, and those there is room for.

    Its kernel goes over those that come, and says what all would cost.
    """
    found = _ROWS.search(instruction.op_name)
    return (int(found[1]), int(found[2])) if found else (1, 1)


def _told(instruction: Instruction) -> dict[str, int]:
    _, found, told = instruction.config.rpartition("serialized_metadata")
    return {key: int(number) for key, number in _TOLD.findall(told)} if found else {}


def filled(computation: Computation, instruction: Instruction, side: int) -> float:
    """The share of a systolic unit that heads fill: every product has one side of them.

    Scores contract a head's width, and what they weigh is as wide; a unit of more rows
    or columns than that leaves the others idle.
    """
    widths = [
        array.dims[-1]
        for name in instruction.operands
        for array in _shapes.arrays(computation[name].shape)[:1]
        if "f" in array.type and len(array.dims) in (3, 4)
    ]
    if not widths:
        return 1.0
    return widths[0] / (-(-widths[0] // side) * side)


def _gemm(instruction: Instruction, operands: list[_shapes.Array]) -> float:
    found = _CONTRACTED.search(instruction.config)
    last = len(operands[0].dims) - 1
    over = [int(dim) for dim in re.findall(r"\d+", found[1])] if found else [last]
    width = math.prod(operands[0].dims[dim] for dim in over)
    return 2.0 * width * _shapes.arrays(instruction.shape)[0].elements


def _attention(instruction: Instruction, operands: list[_shapes.Array]) -> float:
    """Two products forward and five backward, over the pairs that are computed.

    Queries are the first operand of real numbers with a dim for heads, keys the next;
    of the keys' dims the longest is positions.
    """
    real = [a for a in operands if "f" in a.type and len(a.dims) in (3, 4)]
    if len(real) < 2 or not (name := _kind(instruction)):
        return 0.0
    queries, keys = real[0], max(real[1].dims)
    heads = queries.elements * keys
    return 2.0 * _PRODUCTS[name] * heads * _density(instruction, operands, name, keys)


#: Products over every pair of positions, by the kind of kernel.
_PRODUCTS = {"forward": 2, "backward": 5, "dkv": 4, "dq": 3}


def _kind(instruction: Instruction) -> str:
    """Which part of attention a kernel computes; "" of one that is none."""
    if "fmha" in instruction.target:
        return "backward" if "Backward" in instruction.target else "forward"
    kernel = instruction.op_name
    if "dkv" in kernel:  # one that makes the queries' gradient too has three results
        ranks = [len(array.dims) for array in _shapes.arrays(instruction.shape)]
        return "backward" if sum(r >= ranks[-1] for r in ranks) == 3 else "dkv"
    if "dq" in kernel:
        return "dq"
    return "forward" if "splash" in kernel or "flash" in kernel else ""


def _of_cudnn(config: str, keys: int) -> float:
    """The share of pairs that cuDNN's kernel is told to compute."""
    if "CAUSAL" not in config:
        return 1.0
    told = _WINDOW.search(config)
    window = min(int(told[1]) if told else 0, keys)
    return window / keys * (1 - window / (2 * keys)) if window else 0.5


def _density(
    instruction: Instruction, operands: list[_shapes.Array], kind: str, keys: int
) -> float:
    """The share of pairs that a kernel computes."""
    if "fmha" in instruction.target:
        return _of_cudnn(instruction.config, keys)
    sizes = {k + v: int(n) for k, v, n in _BLOCK.findall(instruction.attributes)}
    part = {"forward": "", "dq": "_dq"}.get(kind, "_dkv")
    rows, columns = sizes.get("q" + part), sizes.get("kv" + part)
    grid = next((a.dims for a in operands if a.type == "s8" and len(a.dims) == 3), None)
    if rows is None or columns is None or grid is None:
        return 0.5
    queries, wide = grid[1], -(-keys // columns)
    if kind in ("backward", "dkv"):  # this grid is narrowed along queries
        queries = -(-keys // rows)
    done = sum(min(-(-(row + 1) * rows // columns), wide) for row in range(queries))
    return min(done, grid[1] * grid[2]) / (queries * wide)
