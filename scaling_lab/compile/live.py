"""What is in memory when it is fullest: the buffers of a scheduled module.

``is_scheduled=true`` makes the text's order the order of execution, so a value lives
from its line to that of its last user. Values that share a buffer are told apart from
those that do not by what the module says: views, loops, donated arguments and the
aliases that it lists. Only device memory counts, whole tiles of it; what the allocator
loses between buffers is not seen.
"""

from __future__ import annotations

import dataclasses
import re

from scaling_lab.compile import _names
from scaling_lab.compile._module import Computation, Instruction, Module
from scaling_lab.compile._values import Buffer as Buffer
from scaling_lab.compile._values import Values

_DONATED = re.compile(r"\{(\d*)[\d, ]*\}: \((\d+), \{")


@dataclasses.dataclass(frozen=True)
class Peak:
    """The fullest moment: how many bytes, and the buffers they are in."""

    bytes: int
    buffers: tuple[Buffer, ...]

    def largest(self, count: int = 10) -> list[Buffer]:
        """The largest buffers of that moment."""
        return sorted(self.buffers, key=lambda each: -each.bytes)[:count]


def peak(module: Module, names: _names.Names, header: str = "") -> Peak:
    """The fullest moment of a scheduled module.

    Args:
      module: the module. names: of its instructions.
      header: its first line, which says what is donated.
    """
    donated = header.partition("input_output_alias={")[2].partition("entry_comp")[0]
    given = {int(place or 0): int(by) for place, by in _DONATED.findall(donated)}
    return _Walk(module, names).of(module.entry, None, given)


class _Walk:
    """Liveness of one computation after another, inner ones looked at once."""

    def __init__(self, module: Module, names: _names.Names):
        self._module = module
        self._names = names
        self._known: dict[str, Peak] = {}
        # A TPU's module says which results lie in an operand's memory; of others it
        # is known that an elementwise fusion may overwrite what it is the last to use.
        self._lists_aliases = any(
            "aliasing_operands" in each.config
            for body in module.computations.values()
            for each in body.values()
        )

    def of(
        self, computation: Computation, loop: str | None, given: dict[int, int] | None
    ) -> Peak:
        """The fullest moment of a computation, arguments that are its caller's free.

        Args:
          given: of the entry, output -> the donated argument it lies in; of an inner
            computation `None`: its results lie where its caller has them.
        """
        values = Values(
            self._module, self._names.of(computation), computation, loop, given
        )
        last: dict[Buffer, int] = {}
        order = list(computation)
        for at, name in enumerate(order):
            for buffer in values.used(name):
                last[buffer] = at
        for buffer in values.lasting:
            last[buffer] = len(order)
        if not self._lists_aliases:
            values.reuse(last)
        ends: dict[int, list[Buffer]] = {}
        for buffer, at in last.items():
            ends.setdefault(at, []).append(buffer)
        alive: dict[Buffer, None] = dict.fromkeys(values.arguments)
        size = sum(buffer.bytes for buffer in alive)
        best = Peak(size, tuple(alive))
        for at, name in enumerate(order):
            for buffer in values.made(name):
                if buffer not in alive and buffer in last:
                    alive[buffer] = None
                    size += buffer.bytes
            inner = self._inner(computation[name])
            if size + inner.bytes > best.bytes:
                best = Peak(size + inner.bytes, (*alive, *inner.buffers))
            for buffer in ends.get(at, []):
                if buffer in alive:
                    del alive[buffer]
                    size -= buffer.bytes
        return best

    def _inner(self, instruction: Instruction) -> Peak:
        """The most that what it calls needs beside what its caller holds."""
        if instruction.opcode not in ("while", "conditional", "call"):
            return Peak(0, ())
        every = [Peak(0, ())]
        for name in instruction.callees:
            if name not in self._known:
                body = self._module.computations[name]
                loop = name if instruction.opcode == "while" else None
                self._known[name] = self.of(body, loop, None)
            every.append(self._known[name])
        return max(every, key=lambda each: each.bytes)
