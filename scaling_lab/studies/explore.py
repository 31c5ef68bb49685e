"""The part of the page that is asked: filters, and plots that follow them.

The page's script draws from the one block of JSON that stands here; a reader without
scripts sees every run in the tables and figures below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from scaling_lab.record import RunRecord
from scaling_lab.studies.agreement import agreement
from scaling_lab.studies.facts import labels, varying
from scaling_lab.studies.figures import Numbering
from scaling_lab.studies.frontier import loss_by_compute
from scaling_lab.studies.markup import Markup, anchor, clean, join, tag
from scaling_lab.studies.plain import rows_of
from scaling_lab.studies.plots import Slots, layout_slots
from scaling_lab.studies.rows import dig
from scaling_lab.studies.units import count

#: What runs are filtered by, with the words of the button.
FACETS = {"model": "Model", "chip": "Chip", "layout": "Layout"}

_AGREEMENT = (
    "Each dot is a run; the line is where two levels agree, and the band is where a "
    "prediction puts the truth with 80 % (its width here is the median run's; what is "
    "counted is each run's own). Hollow dots are runs that failed after they were "
    "compiled. Click a dot for its run. Memory and bytes have no interval: prediction "
    "gives none. What simulated devices measured is left out of seconds."
)
_LOSS = (
    "Each dot is a run's {loss} at its training compute, 6 N D, where N are the "
    "parameters that a token is multiplied with{curves}. {words} A fit is to all runs "
    "of the page, whatever the filters show. Do not conclude from one seed that a "
    "point lies below another."
)
_CURVES = "; the thin lines are its loss on the way"


def explore(
    frame: pd.DataFrame, runs: Sequence[RunRecord], slots: Slots, numbering: Numbering
) -> Markup:
    """Filters by model, chip and layout; agreement of the levels; loss by compute."""
    rows = rows_of(frame)
    names = labels(frame, varying(frame))
    facets = [_facets(row, run) for row, run in zip(rows, runs, strict=True)]
    # Colours are the layouts' everywhere; where there is but one, they are free.
    coloured = "layout" if len(set(slots)) > 1 else "model"
    hues = _hues(facets, coloured, rows, slots)

    def point(place: int) -> dict[str, Any]:
        hue = hues[facets[place][coloured]]
        told = {"run": anchor(runs[place].id), "label": names[place], "hue": hue}
        return {**told, "ok": rows[place]["status"] == "ok"}

    levels = agreement(runs, point)
    losses = loss_by_compute(frame, runs, point)
    shown = {anchor(run.id): each for run, each in zip(runs, facets, strict=True)}
    data = {"runs": shown, "agreement": levels, "loss": losses}
    return join(
        _filters(facets, coloured, hues),
        _agreement(levels, numbering) if levels else None,
        _loss(losses, numbering) if losses else None,
        tag("script", _block(data), type="application/json", id="page-data"),
    )


def _facets(row: Mapping[str, Any], run: RunRecord) -> dict[str, str]:
    """A run's model, chip and layout in the words of its filter."""
    size = row["size"] if row["size"] != row["family"] else None
    size = size or (count(row["params"]) if row["params"] else None)
    model = " ".join(str(each) for each in (row["family"], size) if each)
    chip = str(row["target"] or "").partition(":")[0]
    if chip in ("", "local"):
        chip = str(row["device_kind"] or dig(run, "provenance.chip") or chip)
    found = {"model": model, "chip": chip, "layout": row["layout"]}
    return {name: clean(str(text or "not said")) for name, text in found.items()}


def _hues(
    facets: Sequence[Mapping[str, str]],
    coloured: str,
    rows: Sequence[Mapping[str, Any]],
    slots: Slots,
) -> dict[str, str]:
    """The colour class of every value of the facet that dots are coloured by."""
    if coloured == "layout":
        return {
            each["layout"]: slots.get(row["layout"] or "", "")
            for each, row in zip(facets, rows, strict=True)
        }
    return layout_slots(pd.DataFrame({"layout": [each[coloured] for each in facets]}))


def _filters(
    facets: Sequence[Mapping[str, str]], coloured: str, hues: Mapping[str, str]
) -> Markup:
    """A menu for each facet; the script shows them, since it alone makes them act."""
    menus = []
    for facet, heading in FACETS.items():
        counts: dict[str, int] = {}
        for each in facets:
            counts[each[facet]] = counts.get(each[facet], 0) + 1
        swatches = hues if facet == coloured else {}
        options = [
            _option(facet, place, value, many, swatches.get(value))
            for place, (value, many) in enumerate(counts.items())
        ]
        summary = tag(
            "summary", heading, " ", tag("span", f"all {len(counts)}", class_="chosen")
        )
        menus.append(
            tag(
                "details",
                summary,
                tag("div", *options, class_="options"),
                class_="filter",
                id=f"filter-{facet}",
                data_facet=facet,
            )
        )
    told = tag("output", f"{len(facets)} runs", class_="shown", role="status")
    clear = tag("button", "Show all", type="button", class_="clear")
    return tag("form", *menus, told, clear, class_="filters", hidden=True)


def _option(facet: str, place: int, value: str, many: int, hue: str | None) -> Markup:
    box = tag(
        "input",
        type="checkbox",
        id=f"filter-{facet}-{place}",
        value=value,
        autocomplete="off",
    )
    mark = None if hue is None else tag("i", class_=f"swatch {hue}")
    return tag("label", box, mark, value, " ", tag("small", str(many)))


def _agreement(levels: Sequence[Mapping[str, Any]], numbering: Numbering) -> Markup:
    choices = [
        tag("option", each["title"], value=each["name"], selected=place == 0)
        for place, each in enumerate(levels)
    ]
    quantity = tag(
        "select", *choices, id="quantity", aria_label="quantity", autocomplete="off"
    )
    head = tag("p", quantity, class_="choice")
    title = "Predicted against compiled against measured."
    return _figure("agreement", head, numbering, title, _AGREEMENT)


def _loss(losses: Mapping[str, Any], numbering: Numbering) -> Markup:
    words = _LOSS.format(
        loss=losses["loss"],
        curves=_CURVES if losses["curves"] else "",
        words=losses["words"],
    )
    return _figure("loss", None, numbering, "Loss against compute.", words)


def _figure(
    name: str, head: Markup | None, numbering: Numbering, title: str, text: str
) -> Markup:
    caption = tag("figcaption", tag("b", f"{numbering.figure()} {title}"), " ", text)
    place = tag("div", class_="panels", id=f"plot-{name}")
    return tag("figure", head, place, caption, class_="drawn", hidden=True)


def _block(data: Mapping[str, Any]) -> Markup:
    """Plain data as JSON that cannot end the element it stands in."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)
