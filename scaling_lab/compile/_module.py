"""The text of an HLO module as computations of instructions."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLEE = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation)=%?([\w.\-]+)"
    r"|\b(?:branch|called)_computations=\{([^}]*)\}"
)
_PARENTHESIS = re.compile(r"[()]")


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line: ``%name = shape opcode(operand_text), attributes, config``."""

    shape: str
    opcode: str
    operand_text: str
    attributes: str
    config: str

    @functools.cached_property
    def op_name(self) -> str:
        """The name it was traced under, or ""."""
        return self.attribute(r'op_name="([^"]*)"').replace("\\'", "'")

    @functools.cached_property
    def target(self) -> str:
        """What a custom call calls, or ""."""
        return self.attribute(r'custom_call_target="([^"]*)"')

    @functools.cached_property
    def operands(self) -> list[str]:
        """The operands' names, without shapes and comments."""
        bare = re.sub(r"/\*.*?\*/|[\[{][^\]}]*[\]}]", "", self.operand_text)
        words = (part.split() for part in bare.split(","))
        return [word[-1].lstrip("%") for word in words if word]

    @functools.cached_property
    def callees(self) -> list[str]:
        """The names of the computations it calls."""
        names = ",".join(one or many for one, many in _CALLEE.findall(self.attributes))
        return [name.strip().lstrip("%") for name in names.split(",") if name]

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern searched in the attributes, or ""."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""


class Computation(dict[str, Instruction]):
    """Instructions by name, in order."""

    name: str = ""
    root: str = ""


class Module:
    """A module's computations, and the tables its metadata points into.

    Raises:
      ValueError: there is no entry computation, or a line that is no instruction.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        entry, current = "", Computation()
        table: dict[str, str] = {}
        self._tables: dict[str, dict[str, str]] = {}
        for line in _lines(text):
            if match := _LINE.match(line):
                current[match[2]] = _instruction(match[3])
                if match[1]:
                    current.root = match[2]
            elif (match := _HEADER.match(line)) and match[2] != "HloModule":
                current = self.computations[match[2]] = Computation()
                current.name = match[2]
                entry = match[2] if match[1] else entry
            elif re.fullmatch(r"[A-Z]\w+", line):
                table = self._tables[line] = {}
            elif match := re.match(r"(\d+) (.*)", line):
                table[match[1]] = match[2]
        if not entry:
            raise ValueError(
                "no ENTRY computation: this is not the text of an HLO module; "
                "pass compiled.as_text()"
            )
        self.entry = self.computations[entry]

    def source(self, instruction: Instruction) -> str | None:
        """The "file:line" an instruction was written at, where the module says so."""
        file = instruction.attribute(r'source_file="([^"]*)"')
        line = instruction.attribute(r"source_line=(\d+)")
        if not file:
            frame = instruction.attribute(r"stack_frame_id=(\d+)")
            place = self._follow("StackFrames", frame, "file_location_id")
            name = self._follow("FileLocations", place, "file_name_id")
            line = self._follow("FileLocations", place, "line")
            file = self._tables.get("FileNames", {}).get(name, "").strip('"')
        return f"{file}:{line}" if file and line else None

    def _follow(self, table: str, row: str, key: str) -> str:
        match = re.search(rf"\b{key}=(\d+)", self._tables.get(table, {}).get(row, ""))
        return match[1] if match else ""


def _lines(text: str) -> Iterator[str]:
    """The lines of a module; what a kernel says of itself, over several, as one."""
    held = ""
    for line in text.splitlines():
        if held:
            held += line
            if line.startswith("}"):
                yield held
                held = ""
        elif line.endswith("={"):
            held = line
        else:
            yield line
    if held:
        yield held


def _instruction(text: str) -> Instruction:
    """Reads what follows the ``=`` of a line."""
    end = _closing(text, 0) if text.startswith("(") else text.find(" ")
    match = _OPCODE.match(text, end)
    if not match:
        raise ValueError(f"not an HLO instruction: {text[:120]!r}")
    close = _closing(text, match.end() - 1)
    attributes, _, config = text[close:].partition(", backend_config=")
    operands = text[match.end() : close - 1]
    return Instruction(text[:end], match[1], operands, attributes, config)


def _closing(text: str, start: int) -> int:
    """Just past the parenthesis that closes the one at `start`."""
    depth = 0
    for match in _PARENTHESIS.finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)
