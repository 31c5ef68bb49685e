"""HTML and SVG from Python, escaped unless it was made here.

A record's text may hold anything: markup, terminal codes, half characters. Only
`Markup` passes through `tag` as it is, and only this package makes it.
"""

from __future__ import annotations

import hashlib
import html
import re

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# Control characters, and those that turn the reading direction round.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_VOID = {"meta", "br", "col", "input"}


class Markup(str):
    """Text that is already HTML."""


def clean(text: str) -> str:
    """Text without terminal codes, control characters and lone surrogates."""
    text = _UNSEEN.sub("", _TERMINAL_CODES.sub("", text.replace("\r\n", "\n")))
    return text.encode("utf-8", "replace").decode()


def escape(text: str) -> Markup:
    """Text as HTML that shows it; `Markup` is left alone."""
    return text if isinstance(text, Markup) else Markup(html.escape(clean(text)))


def tag(name: str, /, *children: str | None, **attributes: object) -> Markup:
    """An element. ``None`` children and attributes are left out.

    A trailing underscore is dropped from attribute names and the others become
    hyphens (``class_``, ``text_anchor``); numbers are written with two decimals.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    end = "" if name in _VOID else f"</{name}>"
    return Markup(f"<{name}{written}>{join(*children)}{end}")


def join(*children: str | None) -> Markup:
    """Children side by side."""
    return Markup("".join(escape(child) for child in children if child is not None))


def anchor(id: str) -> str:
    """The page's own address of a run; ids that are not plain keep theirs apart too."""
    if re.fullmatch("[0-9A-Za-z]+", id):
        return f"run-{id}"
    return "run-" + hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:16]


def _attribute(value: object) -> str:
    if value is True:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(clean(str(value)))
