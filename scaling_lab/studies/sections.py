"""The page's tables: all runs side by side, and failures with their reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.studies.columns import RANK_NOTHING, column
from scaling_lab.studies.facts import labels, varying
from scaling_lab.studies.figures import Numbering
from scaling_lab.studies.markup import Markup, anchor, join, tag
from scaling_lab.studies.plain import (
    cells_of,
    rows_of,
    with_status,
)
from scaling_lab.studies.plots import Slots
from scaling_lab.studies.table import NUMERIC, cells, leading_columns, level_of

_SHORT_REASON = 110
_LONG_REASON = 700


def runs_table(
    rows: pd.DataFrame, slots: Slots, numbering: Numbering, simulated: bool
) -> Markup:
    """Asked, compiled and measured side by side; a failure shows its reason."""
    names = leading_columns(rows, simulated, in_full=True)
    levels, heads, columns = [], [], []
    for name in names:
        each = column(name)
        heading, unit, texts = cells(rows, name)
        level = level_of(each, simulated)
        begins = not levels or levels[-1][0] != level
        levels = [*levels, (level, 1)] if begins else _widened(levels)
        kind = " ".join(["number"] * (each.kind in NUMERIC) + ["begins"] * begins)
        # What must not be ranked is not offered for sorting either.
        order = None if simulated and each.is_speed else _order(each.kind)
        note = tag("small", unit) if unit else None
        heads.append(
            tag("th", heading, note, class_=kind or None, data_sort=order, scope="col")
        )
        columns.append((name, kind, texts, cells_of(rows, name)))
    lead = [
        tag("th", level, colspan=span, scope="colgroup", class_="begins")
        for level, span in levels
    ]
    body = [_row(run, index, columns, slots) for index, run in enumerate(rows_of(rows))]
    words = f"Speed: {RANK_NOTHING}." if simulated else ""
    caption = (
        "Asked, compiled and measured. Bytes are per device, collective bytes per "
        "device and step; a step's seconds are the median. What all runs share is at "
        f"the head of the page; a dash is a number nobody has. {words}"
    )
    table = tag(
        "table",
        tag("thead", tag("tr", *lead, class_="levels"), tag("tr", *heads)),
        tag("tbody", *body),
        class_="sortable",
    )
    return _under(numbering, caption, tag("div", table, class_="scroll runs"))


def _under(numbering: Numbering, caption: str, table: Markup) -> Markup:
    """A table under its caption."""
    words = tag("figcaption", tag("b", numbering.table()), " ", caption)
    return tag("figure", words, table)


def _widened(levels: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [*levels[:-1], (levels[-1][0], levels[-1][1] + 1)]


def _order(kind: str) -> str:
    return "number" if kind in NUMERIC else "text"


def _row(
    run: Mapping[str, Any],
    index: int,
    columns: Sequence[tuple[str, str, Sequence[str], Sequence[Any]]],
    slots: Slots,
) -> Markup:
    made = []
    for name, kind, texts, values in columns:
        text: str = texts[index]
        value = values[index]
        if name == "layout":
            text = _layout(run, slots)
        elif name == "status":
            text = status(str(value))
        absent = "absent" if text in (units.MISSING, "0") else ""
        classes = f"{kind} {absent}".strip() or None
        made.append(tag("td", text, class_=classes, data_value=value))
    return tag("tr", *made, data_run=anchor(run["id"]))


def _layout(run: Mapping[str, Any], slots: Slots) -> Markup:
    """The layout with its colour, a way to the run, and why it failed."""
    name = run["layout"] or ""
    link = tag("a", name or f"run {run['id'][:8]}", href=f"#{anchor(run['id'])}")
    why = None
    if run["reason"]:
        text = " ".join(run["reason"].split())
        short = text if len(text) <= _SHORT_REASON else text[:_SHORT_REASON] + "…"
        why = tag("span", short, class_="why")
    return join(tag("i", class_=f"swatch {slots.get(name, '')}"), link, why)


def status(text: str) -> Markup:
    """A status, in colour; the word alone says it too."""
    return tag("span", text, class_="status-ok" if text == "ok" else "status-bad")


def failures(frame: pd.DataFrame, slots: Slots, numbering: Numbering) -> Markup:
    """Every run that is not ok, with its whole reason."""
    failed = with_status(frame, False)
    if failed.empty:
        return join(tag("h2", "Failures"), tag("p", "None: every run ended ok."))
    rows = []
    shown = labels(failed, varying(failed))
    for label, run in zip(shown, rows_of(failed), strict=True):
        link = tag("a", label, href=f"#{anchor(run['id'])}")
        swatch = tag("i", class_=f"swatch {slots.get(run['layout'] or '', '')}")
        reason = _reason(run["reason"] or "no reason was recorded")
        rows.append(
            tag(
                "tr",
                tag("td", swatch, link),
                tag("td", status(run["status"])),
                tag("td", reason),
                data_run=anchor(run["id"]),
            )
        )
    caption = "Runs that are not ok, and why. A failure is a result: it is kept."
    heads = [tag("th", text, scope="col") for text in ("layout", "status", "reason")]
    table = tag(
        "table",
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
    )
    table = tag("div", table, class_="scroll failures")
    return join(tag("h2", "Failures"), _under(numbering, caption, table))


def _reason(text: str) -> Markup:
    if len(text) <= _LONG_REASON:
        return tag("div", text, class_="reason")
    return join(
        tag("div", text[:_LONG_REASON] + " …", class_="reason"),
        tag(
            "details",
            tag("summary", f"the whole reason, {len(text):,} characters"),
            tag("div", text, class_="reason"),
        ),
    )
