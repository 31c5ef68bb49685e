"""A layout as people write it: ``fsdp=4,tensor=2+sequence``, or a file's name.

The words of the grammar are the axes' usual meanings; what a word stands for is one
small table each, and a layout is their sum.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from scaling_lab.dims import AXES
from scaling_lab.layouts.tables import IllegalLayout, Layout
from scaling_lab.names import unknown

_HEADS_AND_WIDTHS = ("F", "N", "K", "V")

#: What an axis divides: (params letters, acts letters).
MEANING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": ((), ("B",)),
    "fsdp": (("D",), ("B",)),
    "tensor": (_HEADS_AND_WIDTHS, _HEADS_AND_WIDTHS),
    "context": ((), ("T",)),
    "expert": (("E", "D"), ("E", "B")),
    # Embedding and head are work for all stages, before and after the layers.
    "stage": (("L", "V"), ("V",)),
}

#: What may follow a plus sign.
MODIFIERS: dict[str, str] = {
    "sequence": "activations between blocks divided by position over tensor",
    "zero1": "optimizer state divided over data (and context)",
    "zero2": "gradients and optimizer state divided over data (and context)",
    "gather_once": "gathered weights kept for the backward pass, by a stage for a "
    "step; of every fourth layer alone, as gather_once=4",
    "ring": "keys and values go round context, instead of being gathered",
    "ulysses": "over context positions are exchanged for heads while attention runs",
    "all_to_all": "rows go to the devices of their experts, which is what expert does",
    "ring_of_experts": "tokens are gathered over expert before they are copied",
    "capacity": "experts have as many places each; tokens that find none are dropped",
    "interleaved": "chunks of layers on one stage, as interleaved=2, instead of one",
    "offload_optimizer": "optimizer state rests in the host's memory",
    "1f1b": "stages go forward and backward in turn: few microbatches held, not all",
    "zero_bubble": "as 1f1b, and gradients of weights are made where stages would wait",
}

#: Words that take a number of at least 2, as `interleaved=2`; and those that may.
COUNTED, MAY_COUNT = ("interleaved",), ("gather_once",)

#: What a word binds: (axis it needs, or none; verb; mechanism).
MECHANISMS: dict[str, tuple[str, str, str]] = {
    "ring": ("context", "attend", "ring"),
    "ulysses": ("context", "attend", "ulysses"),
    "all_to_all": ("expert", "experts", "all_to_all"),
    "ring_of_experts": ("expert", "experts", "ring_of_experts"),
    "capacity": ("", "experts", "capacity"),
    "offload_optimizer": ("", "optimizer", "host"),
    "interleaved": ("stage", "stack", "interleaved"),
    "1f1b": ("stage", "stack", "1f1b"),
    "zero_bubble": ("stage", "stack", "zero_bubble"),
}


def names() -> list[str]:
    """The layouts that have a file."""
    import scaling_lab.layouts as package

    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return [name for name in found if hasattr(named(name), "TOY")]


def named(name: str) -> ModuleType:
    """The file of a layout."""
    return importlib.import_module(f"scaling_lab.layouts.{name}")


def parse(text: str, devices: int | None = None) -> Layout:
    """Reads a layout.

    Args:
      text: axes with sizes and modifiers (``data=2,fsdp=4+zero1``), a file's name
        (``hsdp``, sized for `devices`), a file's name with sizes
        (``hsdp:data=2,fsdp=4``), or the path of a JSON file with a layout's tables.
      devices: of the target.

    Raises:
      IllegalLayout: an unknown word, with the nearest that are known.
    """
    text = text.strip()
    if text.endswith(".json"):
        return _from_file(text)
    head, *modifiers = text.split("+")
    name, _, axes_text = head.partition(":")
    if "=" in name:
        return _composed(text, _sizes(head, text), modifiers)
    known = names()
    if name not in known:
        raise IllegalLayout(unknown("layout", name, [*known, *AXES]) + _EXAMPLE)
    module = named(name)
    if axes_text:
        sizes = _sizes(axes_text, text)
    else:
        sizes = module.sizes(devices or 1)
    try:
        layout = module.layout(**sizes)
    except TypeError:
        wanted = ",".join(f"{axis}={size}" for axis, size in module.TOY.items())
        raise IllegalLayout(
            f"layout {text!r}: {name} takes the axes of {name}:{wanted}"
        ) from None
    if modifiers:
        raise IllegalLayout(
            f"layout {text!r}: a file's name takes no modifiers; write its axes "
            f"({','.join(f'{a}={s}' for a, s in sizes.items())}+{'+'.join(modifiers)})"
        )
    return layout


_EXAMPLE = "; or write axes with sizes, as fsdp=4,tensor=2+sequence"


def _from_file(path: str) -> Layout:
    try:
        data = json.loads(Path(path).read_text())
        return Layout.from_json({"name": Path(path).stem, **data})
    except (OSError, ValueError, TypeError) as error:
        raise IllegalLayout(
            f"layout file {path}: {error}; it holds the JSON of Layout.to_json(), "
            'as {"mesh": {"fsdp": 8}, "params": {"D": "fsdp"}, "acts": {"B": "fsdp"}}'
        ) from error


def _sizes(axes_text: str, text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in axes_text.split(","):
        axis, equals, size = part.strip().partition("=")
        if axis not in AXES:
            raise IllegalLayout(
                f"layout {text!r}: " + unknown("axis", axis, AXES) + _EXAMPLE
            )
        if not equals or not size.isdecimal() or int(size) < 1:
            raise IllegalLayout(
                f"layout {text!r}: axis {axis} needs a size of at least 1, as {axis}=2"
            )
        if axis in sizes:
            raise IllegalLayout(f"layout {text!r}: axis {axis} is given twice")
        sizes[axis] = int(size)
    return sizes


def _composed(text: str, sizes: Mapping[str, int], modifiers: list[str]) -> Layout:
    params: dict[str, Any] = {}
    acts: dict[str, Any] = {}
    for axis in (axis for axis in AXES if axis in sizes):
        stored, used = MEANING[axis]
        for table, dims in ((params, stored), (acts, used)):
            for dim in dims:
                table[dim] = _with_axis(table.get(dim), axis)
    # Context devices hold the same weights, so what is divided at all is over them too.
    replicas = [axis for axis in ("data", "context") if axis in sizes]
    if "context" in sizes and "D" in params:
        params["D"] = _with_axis(params["D"], "context")
        replicas.remove("context")
    if "expert" in sizes:
        _with_experts(params, acts)
    fields: dict[str, Any] = {}
    for modifier in modifiers:
        word, equals, count = modifier.partition("=")
        if word not in MODIFIERS:
            raise IllegalLayout(
                f"layout {text!r}: " + unknown("modifier", word, list(MODIFIERS))
            )
        _counted(text, word, equals + count)
        if word == "sequence":
            _needs(text, word, "tensor", sizes)
            acts["BTD"] = {"T": _with_axis(acts.get("T"), "tensor")}
        elif word == "gather_once":
            if "gather" in fields:
                raise IllegalLayout(
                    f"layout {text!r}: +gather_once is written twice; leave one of "
                    "them out"
                )
            fields["gather"] = f"step/{count}" if count else "step"
        elif word in MECHANISMS:
            axis, verb, mechanism = MECHANISMS[word]
            if axis:
                _needs(text, word, axis, sizes)
            bound = {verb: mechanism + equals + count}
            if verb in fields.get("bind", {}):
                raise IllegalLayout(
                    f"layout {text!r}: +{word} and +{fields['bind'][verb]} both say "
                    f"how to do {verb}; leave one of them out"
                )
            fields["bind"] = {**fields.get("bind", {}), **bound}
        else:
            _needs(text, word, "data", sizes)
            width = params.get("D")
            for axis in replicas:
                width = _with_axis(width, axis)
            fields["optimizer"] = divided = {**params, "D": width}
            if word == "zero2":
                fields["grads"] = divided
    return Layout(name=text, mesh=sizes, params=params, acts=acts, **fields)


def _counted(text: str, word: str, value: str) -> None:
    """Raises unless a word has a number where it takes one, and only there."""
    digits, may = value.removeprefix("="), word in MAY_COUNT
    if value and word not in COUNTED and not may:
        raise IllegalLayout(f"layout {text!r}: +{word} takes no value; write +{word}")
    counts = word in COUNTED or (may and value)
    if counts and not (digits.isdecimal() and digits == str(max(2, int(digits)))):
        raise IllegalLayout(
            f"layout {text!r}: +{word} takes a number of at least 2, as +{word}=2"
            + (f", or none, as +{word}" if may else "")
        )


def _with_experts(params: dict[str, Any], acts: dict[str, Any]) -> None:
    """What has dim E is divided over expert by it, and nothing else of it is.

    Outside the experts their axis divides the batch, and rests weights by D.
    """
    axes = params["D"]
    axes = (axes,) if isinstance(axes, str) else axes
    width = tuple(axis for axis in axes if axis != "expert")
    for name in ("EDF", "EFD"):
        params[name] = {"D": width or None}
    for name in ("DE", "BTE"):
        params[name] = acts[name] = {"E": None}


def _with_axis(axes: Any, axis: str) -> Any:
    if axes is None:
        return axis
    return (*((axes,) if isinstance(axes, str) else axes), axis)


def _needs(text: str, word: str, axis: str, sizes: Mapping[str, int]) -> None:
    if axis not in sizes:
        raise IllegalLayout(
            f"layout {text!r}: +{word} works over axis {axis}, which it lacks; "
            f"write {axis}=2,{text}"
        )
