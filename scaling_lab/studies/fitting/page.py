"""A fit as a page: its text and its pictures in one file."""

from __future__ import annotations

from scaling_lab.studies import laws
from scaling_lab.studies.fitting.figure import figure
from scaling_lab.studies.fitting.result import Fit
from scaling_lab.studies.markup import Markup, tag

_STYLE = (
    "body{font:14px/1.5 ui-sans-serif,system-ui,sans-serif;color:#1c1f24;"
    "margin:2rem auto;max-width:50rem;padding:0 1rem}"
    "pre{font:12.5px/1.5 ui-monospace,monospace;overflow-x:auto}"
    "svg{max-width:100%;height:auto}h1{font-size:1.3rem}"
)


def page(fit: Fit) -> str:
    """One HTML file that needs nothing else."""
    title = f"{laws.law(fit.law).title}: {len(fit.points)} points"
    body = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("title", title),
            tag("style", Markup(_STYLE)),
        ),
        tag("body", tag("h1", title), tag("pre", str(fit)), figure(fit)),
        lang="en",
    )
    return f"<!doctype html>\n{body}"
