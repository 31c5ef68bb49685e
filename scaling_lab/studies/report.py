"""The report: one HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from scaling_lab.record import RunRecord, file_of
from scaling_lab.studies.details import each_run
from scaling_lab.studies.facts import common, parts, sentence
from scaling_lab.studies.figures import Numbering, figures
from scaling_lab.studies.header import in_short, origin
from scaling_lab.studies.markup import Markup, join, tag
from scaling_lab.studies.plots import layout_slots
from scaling_lab.studies.rows import Records, frame_of, runs_of
from scaling_lab.studies.sections import failures, runs_table

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
    source = file_of(records).parent if isinstance(records, (str, Path)) else None
    path = Path(out) if out is not None else Path(source or ".") / FILE_NAME
    path = path / FILE_NAME if path.is_dir() or not path.suffix else path
    text = page(runs_of(records), source.resolve().name if source else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def page(runs: Sequence[RunRecord], name: str = "") -> str:
    """The page as text; ``name`` says which runs these are."""
    frame = frame_of(runs)
    title = f"Run report: {name}" if name else "Run report"
    slots, numbering = layout_slots(frame), Numbering()
    found = parts(frame)
    body = [_header(frame, runs, title)]
    for simulated, rows in found:
        kind = "simulated devices" if simulated else "real devices"
        body.append(tag("h2", f"Results on {kind}" if len(found) > 1 else "Results"))
        told = set(common(frame))
        only_here = sentence(rows, [name for name in common(rows) if name not in told])
        if only_here:
            body.append(tag("p", f"All of these: {only_here}.", class_="asked"))
        body += figures(rows, runs, slots, numbering, simulated)
        body.append(runs_table(rows, slots, numbering, simulated))
    body += [failures(frame, slots, numbering), each_run(frame, runs, slots)]
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    body.append(tag("footer", tag("p", f"Written by scaling-lab report, {today}.")))
    return _document(title, join(*body))


def _header(frame: pd.DataFrame, runs: Sequence[RunRecord], title: str) -> Markup:
    asked = sentence(frame, common(frame))
    return tag(
        "header",
        tag("h1", title),
        tag("p", f"All runs: {asked}.", class_="asked") if asked else None,
        in_short(frame),
        origin(frame, runs),
    )


def _document(title: str, body: Markup) -> str:
    files = resources.files("scaling_lab.studies")
    style = (files / "page.css").read_text("utf-8")
    script = (files / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing is fetched and no script but ours runs, whatever a reason holds.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    whole = tag("body", tag("main", body), tag("script", Markup(script)))
    return f"<!doctype html>\n{tag('html', head, whole, lang='en')}\n"
