"""The HTML file around a page: its style, its scripts, and what they may do."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable

from scaling_lab.studies.markup import Markup, tag

#: Drawing libraries in the order they need each other; versions and licences stand in
#: ``vendored/README.md``.
LIBRARIES = ("vega", "vega-lite", "vega-embed")
#: Our own scripts; the last one starts the others.
SCRIPTS = ("plots.js", "page.js")
STYLE = "page.css"


def document(title: str, main: Markup, follow: bool = False) -> str:
    """The whole file; it needs nothing but itself.

    Args:
      main: the ``main`` element.
      follow: the page asks the server it came from for what has changed since.
    """
    scripts = _scripts(drawn=follow or 'class="drawn"' in main)
    style = (_files() / STYLE).read_text("utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content=policy(scripts, follow),
        ),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # A browser asks a server for an icon unless it is given one.
        tag("link", rel="icon", href="data:,") if follow else None,
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        main,
        *(tag("script", Markup(script)) for script in scripts),
        data_follow="main" if follow else None,
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def policy(scripts: Sequence[str], follow: bool) -> str:
    """Nothing is fetched and no script but these runs, whatever a record holds.

    The libraries are told to interpret their expressions, so that nothing has to be
    allowed to make code out of text.
    """
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    asks = "connect-src 'self'; img-src data:; " if follow else ""
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; {asks}"
        f"script-src {digests}; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _scripts(drawn: bool) -> list[str]:
    """The text of every script; the libraries only where something is drawn."""
    found = [_library(name) for name in LIBRARIES] if drawn else []
    return [*found, *((_files() / name).read_text("utf-8") for name in SCRIPTS)]


def _library(name: str) -> str:
    """A library under its licence, without the map that only its authors have."""
    folder = _files() / "vendored"
    licence = (folder / f"LICENSE.{name}").read_text("utf-8").strip()
    text = (folder / f"{name}.min.js").read_text("utf-8")
    text = text.partition("//# sourceMappingURL")[0].strip()
    return f"/*! {name}\n{licence}\n*/\n{text}\n"


def _files() -> Traversable:
    return resources.files("scaling_lab.studies")
