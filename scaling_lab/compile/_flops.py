"""FLOPs of single instructions, from their shapes: products and kernels.

A multiply-add is two; elementwise work is free. What XLA's own analysis says is not
used: it counts a scanned body once.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from scaling_lab.compile import _kernels, _shapes
from scaling_lab.compile._module import Computation, Instruction, Module

_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


class Counter:
    """FLOPs of one execution of an instruction, computations looked at once."""

    def __init__(self, module: Module):
        self._module = module
        self._known: dict[str, float] = {}

    def of(self, computation: Computation, instruction: Instruction) -> float:
        """FLOPs of one execution; of a fusion or call all that is inside.

        Loops and branches count nothing here: they are walked.
        """
        if instruction.opcode == "dot":
            return _dot(computation, instruction)
        if instruction.opcode == "convolution":
            return _convolution(computation, instruction)
        if instruction.opcode == "custom-call":
            return _kernels.flops(computation, instruction)
        if instruction.opcode != "fusion":
            return 0.0
        return sum(map(self._inside, instruction.callees))

    def _inside(self, name: str) -> float:
        if name not in self._known:
            body = self._module.computations[name]
            self._known[name] = sum(self.of(body, each) for each in body.values())
        return self._known[name]


def _dot(computation: Computation, instruction: Instruction) -> float:
    left = _operand(computation, instruction, 0)
    over = _integers(instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
    width = math.prod(left.dims[dim] for dim in over)
    return 2.0 * width * _shapes.arrays(instruction.shape)[0].elements


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """A TPU's products are convolutions: only places that meet an input count."""
    labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|$)")
    inputs, kernels, outputs = re.split(r"_|->", labels)
    left = _operand(computation, instruction, 0).dims
    right = _operand(computation, instruction, 1).dims
    out = _shapes.arrays(instruction.shape)[0].dims
    window = dict(_WINDOW.findall(instruction.attribute(r"window=\{([^}]*)\}")))
    places = 1
    for number, digit in enumerate(sorted(set(kernels) - {"i", "o"})):
        places *= _meetings(
            left[inputs.index(digit)],
            right[kernels.index(digit)],
            out[outputs.index(digit)],
            *(_of_window(window, key, number) for key in ("stride", "pad")),
            *(_of_window(window, key, number) for key in ("lhs_dilate", "rhs_dilate")),
        )
    batches = int(instruction.attribute(r"\bbatch_group_count=(\d+)") or 1)
    features = right[kernels.index("i")] * right[kernels.index("o")]
    return 2.0 * features * (left[inputs.index("b")] // batches) * places


def _of_window(window: dict[str, str], key: str, place: int) -> int:
    """One number of a window's field; of a pad the low end."""
    fields = window.get(key, "").split("x")
    default = 0 if key == "pad" else 1
    return int(fields[place].split("_")[0]) if fields[0] else default


@functools.lru_cache(maxsize=1 << 10)
def _meetings(
    size: int, kernel: int, out: int, stride: int, pad: int, dilate: int, spread: int
) -> int:
    """Pairs of output and kernel places along one dim that meet a real input."""
    if kernel == 1 and not pad and dilate == 1:
        return out
    reach = (size - 1) * dilate + 1
    starts = np.arange(out)[:, None] * stride - pad
    total = 0
    for first in range(0, kernel, 1024):  # in pieces: a kernel can be a sequence long
        steps = np.arange(first, min(first + 1024, kernel))[None] * spread
        at = starts + steps
        total += int(((at >= 0) & (at < reach) & (at % dilate == 0)).sum())
    return total


def _operand(
    computation: Computation, instruction: Instruction, place: int
) -> _shapes.Array:
    made = computation[instruction.operands[place]]
    found = _shapes.arrays(made.shape)
    return found[0] if found else _shapes.Array("", 0, ())


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
