"""Each run in full: what was asked, compiled, measured, and where from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.record import RunRecord
from scaling_lab.studies.columns import RANK_NOTHING, kind_of
from scaling_lab.studies.facts import labels, varying
from scaling_lab.studies.markup import Markup, anchor, join, tag
from scaling_lab.studies.plots import Slots
from scaling_lab.studies.rows import axes_of, dig, simulated_run
from scaling_lab.studies.sections import status
from scaling_lab.studies.source import Source

_LEVELS = ("asked", "predicted", "compiled", "measured", "provenance")
#: Shown in a place of their own, or as a curve, and not as one of many facts.
_APART = {
    "asked.config",
    "compiled.collectives",
    "measured.step_seconds.all",
    "measured.loss.steps",
    "measured.loss.values",
    "measured.experts.steps",
    "measured.experts.imbalance.values",
    "measured.experts.dropped.values",
    "measured.held_out.steps",
    "measured.held_out.bits_per_byte",
}
_FRACTIONS = ("measured.mfu.", "measured.hfu", "measured.experts.dropped.")


def each_run(
    frame: pd.DataFrame, runs: Sequence[RunRecord], slots: Slots, source: Source
) -> Markup:
    """A line for every run that opens to all that is known of it, and its record."""
    names = labels(frame, varying(frame))
    told = [
        _run(label, run, slots.get(str(dig(run, "asked.layout") or ""), ""), source)
        for label, run in zip(names, runs, strict=True)
    ]
    return tag("section", tag("h2", "Each run"), *told, class_="each")


def _run(label: str, run: RunRecord, slot: str, source: Source) -> Markup:
    summary = tag(
        "summary", tag("i", class_=f"swatch {slot}"), label, " · ", status(run.status)
    )
    reason = None
    if run.reason:
        reason = join(tag("h4", "reason"), tag("div", run.reason, class_="reason"))
    levels = [_level(run, level) for level in _LEVELS]
    config = dig(run, "asked.config")
    whole = None
    if config:
        text = json.dumps(config, indent=1, default=str, ensure_ascii=False)
        whole = tag("details", tag("summary", "whole config"), tag("pre", text))
    return tag(
        "details",
        summary,
        tag(
            "div",
            reason,
            tag("div", *levels, class_="level-columns"),
            _collectives(run),
            whole,
            tag(
                "p",
                f"run {run.id}, environment {run.environment}",
                source.link(run.id),
                class_="identity",
            ),
        ),
        id=anchor(run.id),
        data_run=anchor(run.id),
    )


def _level(run: RunRecord, level: str) -> Markup | None:
    facts = list(_facts(getattr(run, level), level))
    if not facts:
        return None
    pairs = [join(tag("dt", name), tag("dd", text)) for name, text in facts]
    title = level
    if level == "measured" and simulated_run(run):
        title = f"measured · speed {RANK_NOTHING}"
    return tag("div", tag("h4", title), tag("dl", *pairs))


def _facts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(name, text) of everything below a path; names are dotted and keep units out."""
    if path in _APART:
        return
    name = path.partition(".")[2]
    if isinstance(value, Mapping):
        if value and all(isinstance(item, int) for item in value.values()):
            if name in ("mesh", "model"):
                yield name, ", ".join(f"{key} {item}" for key, item in value.items())
                return
        for key, item in value.items():
            yield from _facts(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        more = f", … ({len(value)})" if len(value) > 12 else ""
        yield name, ", ".join(str(item) for item in value[:12]) + more
    elif name:
        yield name.replace("_", " "), _text(value, path)


def _text(value: Any, path: str) -> str:
    if value is None:
        return units.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if path.startswith(_FRACTIONS):
        return units.human(value, "fraction")
    unit_words = next(
        (part for part in reversed(path.split(".")) if kind_of(part) != "number"), ""
    )
    kind = kind_of(unit_words)
    if kind == "number" and isinstance(value, int):
        return f"{value:,}" if value > 9999 else str(value)
    if path.endswith(("repeats", "seed")):
        return str(value)
    return units.human(value, kind if path != "provenance.seconds" else "seconds")


def _collectives(run: RunRecord) -> Markup | None:
    found = dig(run, "compiled.collectives")
    entries = [each for each in found or [] if isinstance(each, Mapping)]
    if not entries:
        return None
    rows = [
        tag(
            "tr",
            tag("td", str(each.get("kind") or units.MISSING)),
            tag("td", axes_of(each)),
            tag("td", _text(each.get("count"), "count"), class_="number"),
            tag("td", _text(each.get("bytes"), "_bytes"), class_="number"),
        )
        for each in entries
    ]
    heads = [tag("th", name) for name in ("kind", "over", "count", "bytes")]
    return join(
        tag("h4", "collectives, per device and step"),
        tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)),
    )
