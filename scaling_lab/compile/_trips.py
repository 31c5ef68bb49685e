"""How often each instruction of a module runs: walks it, and counts its loops."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from scaling_lab.compile._module import Computation, Instruction, Module

_NOTED = re.compile(r'"?known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
_FLIPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}
_TRANSPARENT = {"copy", "copy-start", "copy-done", "convert", "bitcast", "reshape"}


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction as it is reached from the entry.

    Attributes:
      computation: where it stands.
      instruction: itself.
      count: executions a step: the trips of the enclosing loops multiplied.
      known: whether all those trips were read and none assumed.
      loop: the body computation of the innermost enclosing loop.
      op_name: the name it was traced under, or its caller's, or "".
    """

    computation: Computation
    instruction: Instruction
    count: int = 1
    known: bool = True
    loop: str | None = None
    op_name: str = ""


def visits(module: Module) -> Iterator[Visit]:
    """Every instruction reached from the entry, through whatever calls it.

    Every branch of a conditional is visited as if it ran, and the condition of a
    loop as often as its body.
    """
    return _visits(module, Visit(module.entry, Instruction("", "", "", "", "")))


def _visits(module: Module, outer: Visit) -> Iterator[Visit]:
    for instruction in outer.computation.values():
        op_name = instruction.attribute(r'op_name="([^"]*)"') or outer.op_name
        here = dataclasses.replace(outer, instruction=instruction, op_name=op_name)
        yield here
        if instruction.opcode.endswith(("-done", "-update")):
            continue  # what it ends was visited at its start
        if instruction.opcode == "while":
            trips, known = trip_count(module, outer.computation, instruction)
            here = dataclasses.replace(
                here,
                count=here.count * trips,
                known=here.known and known,
                loop=instruction.attribute(r"\bbody=%?([\w.\-]+)"),
            )
        for name in instruction.callees:
            inner = dataclasses.replace(here, computation=module.computations[name])
            yield from _visits(module, inner)


def trip_count(
    module: Module, caller: Computation, loop: Instruction
) -> tuple[int, bool]:
    """How often a loop's body runs, and whether nothing had to be assumed.

    What the compiler noted counts first, then a condition that compares a counter
    with a constant. A start or step that cannot be traced is taken as 0 and 1, and a
    loop that cannot be read at all as one trip.
    """
    if match := _NOTED.search(loop.config) or _NOTED.search(loop.attributes):
        return int(match[1]), True
    condition = module.computations[loop.attribute(r"\bcondition=%?([\w.\-]+)")]
    body = module.computations[loop.attribute(r"\bbody=%?([\w.\-]+)")]
    scope, test = _resolve(module, _Scope(condition), condition.root)
    order = test.attribute(r"direction=(\w\w)")
    if test.opcode != "compare" or order not in _FLIPPED:
        return 1, False
    initial = _initial(module, caller, loop)
    left, right = (_value(module, scope, name) for name in test.operands)
    sides = ((left, right, order), (right, left, _FLIPPED[order]))
    for counter, other, way in sides:
        bound = _constant(other, initial)
        if not isinstance(counter, _Element) or bound is None:
            continue
        step = _step(module, body, counter.place, initial)
        if step == 0:
            continue  # this side stays as it is, so the other one counts
        start = _constant(counter, initial)
        trips = _count(start or 0, bound, step or (-1 if way[0] == "G" else 1), way)
        if trips is not None:
            return trips, start is not None and step is not None
    return 1, False


def _count(start: int, bound: int, step: int, order: str) -> int | None:
    """Trips of ``for (i = start; i <order> bound; i += step)``; `None` if endless."""
    if order == "NE":
        trips, rest = divmod(bound - start, step)
        return trips if trips >= 0 and rest == 0 else None
    if (step > 0) != (order[0] == "L"):
        return None
    reach = (bound - start) * (1 if step > 0 else -1) + (order[1] == "E")
    return max(0, -(-reach // abs(step)))


class _Scope(NamedTuple):
    """A computation, and what its parameters stand for where that is known."""

    computation: Computation
    arguments: tuple[tuple[_Scope, str], ...] = ()


class _Element(NamedTuple):
    """An element of a loop's state, by its place in the tuple."""

    place: int


_Value = int | _Element | None


def _initial(module: Module, caller: Computation, loop: Instruction) -> list[_Value]:
    """What each element of a loop's state is when the loop begins."""
    scope, state = _resolve(module, _Scope(caller), loop.operands[0])
    names = state.operands if state.opcode == "tuple" else []
    return [_value(module, scope, name) for name in names]


def _constant(value: _Value, initial: list[_Value]) -> int | None:
    """A constant, or an element's first value where that is one."""
    if isinstance(value, _Element):
        value = initial[value.place] if value.place < len(initial) else None
    return value if isinstance(value, int) else None


def _step(
    module: Module, body: Computation, index: int, initial: list[_Value]
) -> int | None:
    """What one trip adds to an element of a loop's state; `None` if unclear."""
    scope, state = _resolve(module, _Scope(body), body.root)
    if state.opcode != "tuple":
        return None
    name = state.operands[index]
    if _value(module, scope, name) == _Element(index):
        return 0
    scope, update = _resolve(module, scope, name)
    values = [_value(module, scope, name) for name in update.operands]
    if update.opcode == "add" and values[1] == _Element(index):
        values.reverse()
    if update.opcode not in ("add", "subtract") or values[0] != _Element(index):
        return None
    by = _constant(values[1], initial)
    return -by if by is not None and update.opcode == "subtract" else by


def _value(module: Module, scope: _Scope, name: str) -> _Value:
    """A constant, an element of the enclosing loop's state, or neither."""
    scope, found = _resolve(module, scope, name)
    if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.operand_text):
        return int(found.operand_text)
    if found.opcode == "get-tuple-element":
        _, state = _resolve(module, scope, found.operands[0])
        if state.opcode == "parameter":
            return _Element(int(found.attribute(r"\bindex=(\d+)")))
    return None


def _resolve(module: Module, scope: _Scope, name: str) -> tuple[_Scope, Instruction]:
    """Follows copies, calls, fusions and tuples to what made a value."""
    while True:
        found = scope.computation[name]
        if found.opcode in _TRANSPARENT:
            name = found.operands[0]
        elif found.opcode == "parameter" and scope.arguments:
            scope, name = scope.arguments[int(found.operand_text)]
        elif found.opcode in ("fusion", "call") and found.callees:
            callee = module.computations[found.callees[0]]
            arguments = tuple((scope, operand) for operand in found.operands)
            scope, name = _Scope(callee, arguments), callee.root
        elif found.opcode == "get-tuple-element":
            inside, made = _resolve(module, scope, found.operands[0])
            if made.opcode != "tuple":
                return scope, found
            index = int(found.attribute(r"\bindex=(\d+)"))
            scope, name = inside, made.operands[index]
        else:
            return scope, found
