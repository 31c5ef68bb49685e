"""Where the records of a page stand: the file, and each run's line in it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from scaling_lab.studies.markup import Markup, join, tag


@dataclasses.dataclass(frozen=True)
class Source:
    """The record file as the page reaches it, and the line of each run's latest record.

    Records that were handed over in memory have no file: the empty source links
    nothing.
    """

    href: str = ""
    name: str = ""
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def link(self, id: str) -> Markup | None:
        """A way from a run to its record."""
        if not self.href:
            return None
        line = self.lines.get(id)
        where = f", line {line}" if line else ""
        return join(
            ", ", tag("a", f"{self.name}{where}", href=self.href, class_="to-record")
        )


EMPTY = Source()


def source_of(file: Path, page: Path) -> Source:
    """The source of a page that stands at a path, told relative to it."""
    href = quote(os.path.relpath(file.resolve(), page.resolve().parent))
    return Source(href, file.name, lines_of(file))


def lines_of(file: Path) -> dict[str, int]:
    """The number of the last line of every run, from 1."""
    found = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                read = json.loads(line)
            except ValueError:  # torn or damaged; the reader says so
                continue
            if isinstance(read, dict) and isinstance(read.get("id"), str):
                found[read["id"]] = number
    return found
