"""The head of the page: the runs in short, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

import scaling_lab.studies.units as units
from scaling_lab.record import RunRecord
from scaling_lab.studies.columns import column
from scaling_lab.studies.facts import HEADED, labels, parts, tally, varying
from scaling_lab.studies.markup import Markup, join, tag
from scaling_lab.studies.plain import column_of, having, keep, known, with_status
from scaling_lab.studies.rows import dig


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
