"""The page's words and tables: in short, where from, all runs, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.record import RunRecord
from scaling_lab.studies.columns import RANK_NOTHING, column
from scaling_lab.studies.facts import HEADED, labels, parts, tally, varying
from scaling_lab.studies.figures import Numbering
from scaling_lab.studies.markup import Markup, join, tag
from scaling_lab.studies.plain import (
    cells_of,
    column_of,
    having,
    keep,
    known,
    rows_of,
    with_status,
)
from scaling_lab.studies.plots import Slots
from scaling_lab.studies.rows import dig
from scaling_lab.studies.table import NUMERIC, cells, leading_columns, level_of

_SHORT_REASON = 110
_LONG_REASON = 700


def in_short(frame: pd.DataFrame) -> Markup:
    """A strip of what one would say first."""
    items: list[Markup | None] = [
        _item(
            f"{len(with_status(frame, True))} of {len(frame)}",
            "runs ok",
            tally(frame),
        )
    ]
    found = parts(frame)
    for simulated, rows in found:
        where = (" (simulated)" if simulated else " (real devices)") * (len(found) > 1)
        ok = with_status(rows, True)
        one_question = not any(name in HEADED for name in varying(ok))
        wanted = [("peak_bytes", "lowest peak per device")]
        wanted += [("collective_bytes", "fewest collective bytes")]
        if not simulated:
            wanted.insert(0, ("tokens_per_second", "highest tokens per second"))
        for name, words in wanted if one_question else []:
            items.append(_best(ok, name, words + where))
        items.append(_equality(ok, where))
    return tag("ul", *items, class_="short")


def _item(number: str, what: str, more: str) -> Markup:
    return tag(
        "li", tag("b", number), tag("span", what, class_="what"), tag("span", more)
    )


def _best(ok: pd.DataFrame, name: str, words: str) -> Markup | None:
    rows = having(ok, name)
    if len(rows) < 2:
        return None
    values = known(rows, name)
    best = max(values) if name == "tokens_per_second" else min(values)
    names = labels(rows, varying(rows))
    first = [label for label, value in zip(names, values, strict=True) if value == best]
    more = f" and {len(first) - 2} more" if len(first) > 2 else ""
    number = units.human(best, column(name).kind)
    return _item(number, words, ", ".join(first[:2]) + more)


def _equality(ok: pd.DataFrame, where: str) -> Markup | None:
    """How many of the judged runs agree with their reference."""
    judged = having(ok, "loss_relative_difference")
    judged = keep(judged, column_of(judged, "precision") == "float32")
    gaps = known(judged, "loss_relative_difference")
    if not gaps:
        return None
    agreeing = sum(gap <= units.LOSS_TOLERANCE for gap in gaps)
    worst = labels(judged, varying(judged))[gaps.index(max(gaps))]
    text = f"largest difference {max(gaps):.0e}, {worst}"
    return _item(f"{agreeing} of {len(judged)}", f"losses equal to 1e-4{where}", text)


def origin(frame: pd.DataFrame, runs: Sequence[RunRecord]) -> Markup:
    """Where the numbers come from: software, machine, source, data, when."""
    started = sorted(known(frame, "started"))
    when = " to ".join(dict.fromkeys((started[0], started[-1]))) if started else None
    entries = [
        ("Software", _each(runs, "provenance.versions", _versions)),
        ("Machine", _each(runs, "provenance.host", _host)),
        ("Source", _each(runs, "provenance.git", _git)),
        ("XLA flags", _each(runs, "provenance.xla_flags", str)),
        ("Data", _each(runs, "asked.data", _data)),
        ("Started", when),
    ]
    pairs = [join(tag("dt", name), tag("dd", text)) for name, text in entries if text]
    return tag("dl", *pairs)


def _each(runs: Sequence[RunRecord], path: str, say: Callable[[Any], str]) -> str:
    """What the runs say at a path; with how many say it, where they differ."""
    counts: dict[str, int] = {}
    for run in runs:
        value = dig(run, path)
        text = say(value) if value else ""
        if text:
            counts[text] = counts.get(text, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    said = [f"{text} ({count} runs)" for text, count in list(counts.items())[:4]]
    said += [f"{len(counts) - 4} more"] * (len(counts) > 4)
    return "; ".join(said)


def _versions(versions: Any) -> str:
    if not isinstance(versions, Mapping):
        return str(versions)
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _host(host: Any) -> str:
    if not isinstance(host, Mapping):
        return str(host)
    memory = host.get("memory_bytes")
    known = isinstance(memory, (int, float))
    said = [
        host.get("name"),
        f"{host['cpus']} CPUs" if host.get("cpus") else None,
        f"{units.human(memory, 'bytes')} memory" if known else None,
        host.get("device_kind"),
    ]
    return ", ".join(str(text) for text in said if text)


def _git(git: Any) -> str:
    if not isinstance(git, Mapping):
        return str(git)
    commit = str(git.get("commit") or "unknown commit")[:12]
    return f"{commit}, with uncommitted changes" if git.get("dirty") else commit


def _data(data: Any) -> str:
    if not isinstance(data, Mapping):
        return str(data)
    source = data.get("source")
    names = source if isinstance(source, list) else [source] if source else []
    said = [", ".join(str(name) for name in names)]
    said += [f"{data['tokenizer']} tokenizer"] * bool(data.get("tokenizer"))
    said += [f"digest {data['digest']}"] * bool(data.get("digest"))
    return "; ".join(text for text in said if text)


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
    return tag("tr", *made)


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


def anchor(id: str) -> str:
    """The page's own address of a run."""
    return "run-" + "".join(letter for letter in id if letter.isalnum())


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
