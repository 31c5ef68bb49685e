"""The report: one HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scaling_lab.record import RunRecord, file_of
from scaling_lab.studies.details import each_run
from scaling_lab.studies.document import document
from scaling_lab.studies.explore import explore
from scaling_lab.studies.facts import common, parts, sentence
from scaling_lab.studies.figures import Numbering, figures
from scaling_lab.studies.header import in_short, origin
from scaling_lab.studies.markup import Markup, tag
from scaling_lab.studies.plots import Slots, layout_slots
from scaling_lab.studies.rows import Records, frame_of, runs_of
from scaling_lab.studies.sections import failures, runs_table
from scaling_lab.studies.source import EMPTY, Source, source_of

FILE_NAME = "report.html"


def report(records: Records, out: str | Path | None = None) -> Path:
    """Writes one self-contained page on all runs and returns its path.

    Args:
      records: a record file, a folder that holds one, or the records themselves.
      out: the file to write, or a folder for ``report.html``; by default that stands
        beside the records.

    Raises:
      FileNotFoundError: there is no such record file.
      ValueError: there is no record in it, or no place to write to.
    """
    if out is None and not isinstance(records, (str, Path)):
        raise ValueError(
            "records in memory have no folder of their own; say where the page goes: "
            "report(records, out='report.html')"
        )
    file = file_of(records) if isinstance(records, (str, Path)) else None
    path = Path(out) if out is not None else (file or Path()).parent / FILE_NAME
    path = path / FILE_NAME if path.is_dir() or not path.suffix else path
    runs, name = runs_of(records), ""
    source = EMPTY
    if file is not None:
        name, source = file.parent.resolve().name, source_of(file, path)
    text = page(runs, name, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def page(runs: Sequence[RunRecord], name: str = "", source: Source = EMPTY) -> str:
    """The page as text; ``name`` says which runs these are."""
    return document(title_of(name), main(runs, name, source))


def title_of(name: str) -> str:
    """What the page is called."""
    return f"Run report: {name}" if name else "Run report"


def main(
    runs: Sequence[RunRecord],
    name: str = "",
    source: Source = EMPTY,
    state: str | None = None,
) -> Markup:
    """The page's ``main`` element: all there is to read.

    Args:
      source: where the records stand.
      state: of a page that is served, which state of the records it shows.
    """
    frame = frame_of(runs)
    slots, numbering = layout_slots(frame), Numbering()
    body = [
        _header(frame, runs, title_of(name), state is not None),
        explore(frame, runs, slots, numbering),
        *_results(frame, runs, slots, numbering),
        failures(frame, slots, numbering),
        each_run(frame, runs, slots, source),
        _footer("Written by scaling-lab report" if state is None else "As served"),
    ]
    return tag("main", *body, data_state=state)


def waiting(name: str, state: str) -> Markup:
    """The ``main`` element of a page that is served before any run has ended."""
    said = tag("p", "No run has ended yet; the first will appear here.")
    header = tag("header", tag("h1", title_of(name)), _live(), said)
    return tag("main", header, _footer("As served"), data_state=state)


def _results(
    frame: pd.DataFrame, runs: Sequence[RunRecord], slots: Slots, numbering: Numbering
) -> list[Markup]:
    """Figures and a table for each kind of device."""
    body, found = [], parts(frame)
    for simulated, rows in found:
        kind = "simulated devices" if simulated else "real devices"
        body.append(tag("h2", f"Results on {kind}" if len(found) > 1 else "Results"))
        told = set(common(frame))
        only_here = sentence(rows, [name for name in common(rows) if name not in told])
        if only_here:
            body.append(tag("p", f"All of these: {only_here}.", class_="asked"))
        body += figures(rows, runs, slots, numbering, simulated)
        body.append(runs_table(rows, slots, numbering, simulated))
    return body


def _header(
    frame: pd.DataFrame, runs: Sequence[RunRecord], title: str, live: bool
) -> Markup:
    asked = sentence(frame, common(frame))
    return tag(
        "header",
        tag("h1", title),
        _live() if live else None,
        tag("p", f"All runs: {asked}.", class_="asked") if asked else None,
        in_short(frame),
        origin(frame, runs),
    )


def _live() -> Markup:
    """A line in which the page's script says whether it still follows."""
    return tag("p", "Live.", class_="live", role="status")


def _footer(said: str) -> Markup:
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return tag("footer", tag("p", f"{said}, {today}."))
