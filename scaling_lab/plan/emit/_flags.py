"""What every tool's file returns."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Flags:
    """Flags of one trainer.

    Attributes:
      tool: its name. version: where the names were read.
      form: how a flag is written, with ``{name}`` and ``{value}``.
      values: name -> value; ``True`` of a switch that takes none.
      unmapped: what of the choice cannot be said, and what is said instead.
      refused: those of them that make another layout of it.
      runs: what runs instead, where it fills memory otherwise: ``zero``, ``schedule``,
        ``remat`` and ``optimizer``, as a plan says them.
      instead_of: the choice that was asked for, and why this one is written.
    """

    tool: str
    version: str
    form: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    unmapped: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    runs: dict[str, Any] = dataclasses.field(default_factory=dict)
    instead_of: str | None = None

    def cannot(self, note: str, **runs: Any) -> None:
        """Notes a part of the layout that the trainer has not, and what runs then."""
        self.unmapped.append(note)
        self.refused.append(note)
        self.runs |= runs

    def lines(self) -> list[str]:
        """One flag each."""
        return [
            self.form.partition("{name}")[0] + name
            if value is True and self.form.startswith("--")
            else self.form.format(name=name, value=_text(value))
            for name, value in self.values.items()
        ]

    def text(self) -> str:
        """For a shell: a comment for what is unmapped, then one flag a line."""
        notes = [f"# {self.tool}, flags as in {self.version}"]
        notes += [f"# {self.instead_of}"] if self.instead_of else []
        notes += [f"# not mapped: {note}" for note in self.unmapped]
        return "\n".join([*notes, " \\\n".join(self.lines())])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**dataclasses.asdict(self), "lines": self.lines()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
