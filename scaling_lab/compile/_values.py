"""Which buffers the values of one computation lie in, and which they share."""

from __future__ import annotations

import dataclasses
import re

from scaling_lab.compile import _shapes
from scaling_lab.compile._module import Computation, Instruction, Module

ARGUMENT, TEMPORARY = "argument", "temporary"

_ALIASED = re.compile(r"\{(\d*)[\d, ]*\}: \((\d+), \{(\d*)")
_MAY_ALIAS = re.compile(r'\{"indices":\["(\d+)","(\d+)"\]\}')
_SAME = {"bitcast", "opt-barrier", "while", "copy-done", "add-dependency"}
_FIRST = {"dynamic-update-slice", "scatter"}


@dataclasses.dataclass(frozen=True, eq=False)
class Buffer:
    """Device memory that one value, or several after each other, lies in.

    Attributes:
      bytes: of one device, whole tiles. what: argument or temporary.
      name, shape: of the instruction that makes it. op_name: of its trace, or that of
        its first user. source: "file:line".
      loop: the body it lives in; ``None`` for the entry.
    """

    bytes: int
    what: str
    name: str
    shape: str
    op_name: str
    source: str | None
    loop: str | None


class Values:
    """Which buffers the values of one computation lie in."""

    def __init__(
        self,
        module: Module,
        names: dict[str, str],
        computation: Computation,
        loop: str | None,
        given: dict[int, int] | None,
    ):
        self._module, self._computation, self._loop = module, computation, loop
        self._entry = given is not None
        self._names = names
        self._of: dict[str, list[Buffer | None]] = {}
        self.arguments: list[Buffer] = []
        for name, instruction in computation.items():
            self._of[name] = self._lay(name, instruction)
        self._join_results(given)
        root = self._of.get(computation.root, [])
        self.lasting = {b for b in root if b is not None} | set(self.arguments)

    def made(self, name: str) -> list[Buffer]:
        """The buffers that a value lies in."""
        return [buffer for buffer in self._of[name] if buffer is not None]

    def used(self, name: str) -> list[Buffer]:
        """The buffers that an instruction touches: its own and its operands'."""
        instruction = self._computation[name]
        found = self.made(name)
        if instruction.opcode in ("tuple", "get-tuple-element", "bitcast"):
            return found  # a view touches nothing before it is used
        for operand in instruction.operands:
            if operand in self._of:
                found += self.made(operand)
        return found

    def reuse(self, last: dict[Buffer, int]) -> None:
        """Lets elementwise results lie in operands that nothing uses after them.

        Args:
          last: buffer -> the place of its last user; what is overwritten lives on as
            what overwrites it.
        """
        instead: dict[Buffer, Buffer] = {}

        def now(buffer: Buffer | None) -> Buffer | None:
            while buffer in instead:
                buffer = instead[buffer]
            return buffer

        for at, (name, instruction) in enumerate(self._computation.items()):
            self._of[name] = made = [now(buffer) for buffer in self._of[name]]
            if not _elementwise(instruction):
                continue
            dying = [
                held
                for operand in instruction.operands
                for held in map(now, (self._of.get(operand) or [None])[:1])
                if held and held.what != ARGUMENT and last.get(held) == at
            ]
            for place, fresh in enumerate(made):
                for held in dying:
                    if fresh and held not in made and held.shape == fresh.shape:
                        instead[fresh] = made[place] = held
                        last[held] = last.pop(fresh, at)
                        dying.remove(held)
                        break
        self.lasting = {b for b in map(now, self.lasting) if b is not None}

    def _lay(self, name: str, instruction: Instruction) -> list[Buffer | None]:
        operands = [self._of.get(each, []) for each in instruction.operands]
        opcode = instruction.opcode
        if opcode == "tuple":
            return [buffer for each in operands for buffer in each]
        if opcode == "get-tuple-element":
            return self._element(instruction, operands[0])
        if opcode in _SAME or opcode.endswith(("-done", "-update")):
            return self._same(name, instruction, operands)
        if opcode == "constant":
            return [None for _ in _shapes.arrays(instruction.shape)]
        what = TEMPORARY
        if opcode == "parameter":
            if not self._entry:
                return [None for _ in _shapes.arrays(instruction.shape)]
            what = ARGUMENT
        made = self._fresh(name, instruction, what)
        if opcode.endswith("-start") and len(made) > 1 and operands and operands[0]:
            made[0] = operands[0][0]  # a start hands its operand through
        for place, operand, element in self._aliases(instruction, operands):
            if 0 <= place < len(made) and element < len(operands[operand]):
                made[place] = operands[operand][element]
        if what == ARGUMENT:
            self.arguments += [buffer for buffer in made if buffer is not None]
        return made

    def _fresh(
        self, name: str, instruction: Instruction, what: str
    ) -> list[Buffer | None]:
        made: list[Buffer | None] = []
        for array in _shapes.arrays(instruction.shape):
            if array.space != _shapes.HBM or not array.padded_bytes:
                made.append(None)
                continue
            op_name = self._names[name] or instruction.op_name
            source = self._module.source(instruction)
            shape = f"{array.type}[{','.join(map(str, array.dims))}]"
            size = array.padded_bytes
            made.append(Buffer(size, what, name, shape, op_name, source, self._loop))
        return made

    def _element(
        self, instruction: Instruction, state: list[Buffer | None]
    ) -> list[Buffer | None]:
        """One element of a tuple; of nested tuples the leaves it has."""
        index = int(instruction.attribute(r"\bindex=(\d+)"))
        width = len(_shapes.arrays(instruction.shape))
        if width != 1:  # a nested tuple: places cannot be told apart, all stay alive
            return state
        return state[index : index + 1]

    def _same(
        self,
        name: str,
        instruction: Instruction,
        operands: list[list[Buffer | None]],
    ) -> list[Buffer | None]:
        """A view of its operand, or what an asynchronous start made."""
        state = operands[0] if operands else []
        width = len(_shapes.arrays(instruction.shape))
        if instruction.opcode.endswith("-done") and len(state) > width:
            spaces = [array.space for array in _shapes.arrays(instruction.shape)]
            if all(space != _shapes.HBM for space in spaces):
                return [None] * width
            return state[-width - self._contexts(instruction) :][:width]
        if len(state) != width:
            return self._fresh(name, instruction, TEMPORARY)
        return state

    def _contexts(self, done: Instruction) -> int:
        """How many words of context stand behind the results of a start."""
        start = self._computation.get(done.operands[0])
        arrays = _shapes.arrays(start.shape) if start else ()
        behind = 0
        for array in reversed(arrays):
            if array.dims or array.bits != 32:
                break
            behind += 1
        return behind

    def _aliases(self, instruction: Instruction, operands: list):
        """(element of the result, operand, its element) that share a buffer."""
        text = instruction.attribute(r"output_to_operand_aliasing=(\{.*?\)\})")
        for place, operand, element in _ALIASED.findall(text):
            yield int(place or 0), int(operand), int(element or 0)
        for first, second in _MAY_ALIAS.findall(instruction.config):
            yield int(second) - len(operands), int(first), 0
        if instruction.opcode in _FIRST and operands:
            yield 0, 0, 0

    def _join_results(self, given: dict[int, int] | None) -> None:
        """Results lie where they are wanted: in donated arguments, or the caller's."""
        root = self._of.get(self._computation.root, [])
        free: set[Buffer] = set()
        for place, buffer in enumerate(root):
            if buffer is None or buffer.what == ARGUMENT:
                continue
            if given is None or place in given:
                free.add(buffer)
        if free:
            self._of = {
                name: [None if buffer in free else buffer for buffer in found]
                for name, found in self._of.items()
            }


def _elementwise(instruction: Instruction) -> bool:
    """Whether it may write where it reads: one loop over elements, or a plain one."""
    loops = ("kind=kLoop", "kind=kInput")
    return any(
        kind in instruction.attributes for kind in loops
    ) or instruction.opcode in (
        *("add", "multiply", "subtract", "divide", "negate", "select", "maximum"),
        *("minimum", "exponential", "convert"),
    )
