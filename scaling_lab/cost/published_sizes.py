"""A published row's four sizes: its own, by the model's name, or a usual shape."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scaling_lab import models

if TYPE_CHECKING:
    from scaling_lab.cost.published import Row

NAMES = ("layers", "d_model", "n_heads", "d_ff")
#: Names that tables write a model by, and its family and size here.
_KNOWN = (
    (r"llama31?8b", "llama", "8b"),
    (r"llama3[13]?70b", "llama", "70b"),
    (r"llama31?405b", "llama", "405b"),
    (r"llama321b", "llama", "1b"),
    (r"llama2?7b", "llama", "2-7b"),
    (r"llama2?13b", "llama", "2-13b"),
    (r"llama270b", "llama", "2-70b"),
)
#: Width over depth of a usual model, and the width of a head (Kaplan et al. 2020,
#: section 3.2, finds the loss nearly blind to the first between 50 and 200).
_WIDTH_TO_DEPTH, _HEAD = 110, 128
#: Weights of a block over its width squared, whatever the feed-forward.
_BLOCK = 12


def sizes(row: Row) -> dict[str, float]:
    """Layers, width, heads and feed-forward width; what was filled in is said.

    Raises:
      ValueError: one is blank and neither the name nor ``params`` says it, or the
        layers are no whole number.
    """
    given = {name: row.number(name) or 0.0 for name in NAMES}
    blank = [name for name in NAMES if not given[name]]
    if blank:
        given |= _filled(row, given, blank)
    if given["layers"] % 1:
        raise ValueError(f"layers={given['layers']:g} is no whole number")
    return given


def _filled(row: Row, given: dict[str, float], blank: list[str]) -> dict[str, float]:
    found, why = _by_name(row.text("model")), "by the model's name"
    params = row.number("params")
    if found is None and params and not row.number("n_experts"):
        found, why = _usual(given, params), f"usual for {params:.3g} parameters"
    for name in blank:
        if found is None:
            row.needed(name)
    values = {name: (found or {})[name] for name in blank}
    said = ", ".join(f"{name}={value:g}" for name, value in values.items())
    row.say(f"blank and {why}: {said}")
    return values


def _by_name(text: str) -> dict[str, float] | None:
    name = re.sub(r"[^a-z0-9]", "", text.lower())
    for pattern, family, size in _KNOWN:
        if re.fullmatch(pattern, name):
            model = models.size(family, size)
            dims = (model.L, model.D, model.N, model.F)
            return dict(zip(NAMES, map(float, dims), strict=True))
    return None


def _usual(given: dict[str, float], params: float) -> dict[str, float]:
    """A dense model of that many parameters, around what is given of it."""
    layers, width = given["layers"], given["d_model"]
    if not layers and not width:
        layers = max(1.0, round((params / _BLOCK / _WIDTH_TO_DEPTH**2) ** (1 / 3)))
    if not width:
        exact = (params / _BLOCK / layers) ** 0.5
        width = max(_HEAD, _HEAD * round(exact / _HEAD))
    if not layers:
        layers = max(1.0, round(params / _BLOCK / width**2))
    heads = given["n_heads"] or max(1.0, round(width / _HEAD))
    return dict(zip(NAMES, (layers, width, heads, 4 * width), strict=True))
