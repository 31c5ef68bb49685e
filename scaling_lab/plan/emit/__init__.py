"""A choice as the flags of another trainer, and what of it cannot be said there.

One file a trainer; its name is its key. Each offers ``VERSION``, where its flag names
were read, and ``emit(question, choice) -> Flags``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from scaling_lab.names import one_of
from scaling_lab.plan import words
from scaling_lab.plan.answer import Choice, Plan, choice_at
from scaling_lab.plan.emit._fitting import needed
from scaling_lab.plan.emit._flags import Flags as Flags
from scaling_lab.plan.question import Question


def tools() -> tuple[str, ...]:
    """The trainers that can be written for."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def flags(tool: str, question: Question, choice: Choice) -> Flags:
    """A choice as that tool's flags.

    Raises:
      ValueError: no such tool, with those that there are.
    """
    one_of("tool", tool, tools())
    return importlib.import_module(f"{__name__}.{tool}").emit(question, choice)


def best(tool: str, found: Plan, choose: int = 1) -> Flags:
    """The flags of a plan's row, or of the next best that the tool has and that fits.

    Args:
      choose: which row, the first being 1.

    Raises:
      ValueError: no such tool or row; no choice can be said to it and fits.
    """
    one_of("tool", tool, tools())
    if not 1 <= choose <= len(found.choices):
        raise ValueError(f"--choose {choose}: there are {len(found.choices)} rows")
    why = ""
    for tried, choice in enumerate(_from(found, choose)):
        told = flags(tool, found.question, choice)
        reason = _against(found, choice, told)
        if reason and not tried:
            why = f"{_said(choice)} cannot be said to {tool}: {reason}"
        elif not reason:
            if tried:
                told.instead_of = f"{why}. The best that can is {_said(choice)}"
            return told
    raise ValueError(
        f"{why}. Nor can any slower layout that fits; allow more --axes, take more "
        "devices or a smaller --batch-tokens, or emit for "
        + " or ".join(other for other in tools() if other != tool)
    )


def _from(found: Plan, choose: int) -> Iterator[Choice]:
    """A row, the rest of the plan's rows by their prices, and all that is no row."""
    first, shown = found.choices[choose - 1], {c.index: c for c in found.choices}
    yield first
    for index in found.ranked.order().tolist():
        if found.ranked.seconds[index] >= first.step_seconds and index != first.index:
            yield shown.get(index) or choice_at(found.ranked, index, first.index)


def _against(found: Plan, choice: Choice, told: Flags) -> str:
    """Why flags may not be handed out; empty if they may."""
    need, limit = needed(found.ranked, choice, told), found.question.limit_bytes
    notes = list(told.refused)
    if choice.confirmed is False:
        notes.append(choice.reason)
    elif need > limit:
        notes = notes or list(told.unmapped)
        notes.append(f"needs {words.size(need)} of {words.size(limit)} a device")
    return "; ".join(notes)


def _said(choice: Choice) -> str:
    return (
        f"{choice.layout}, {choice.microbatches}×{choice.sequences}, remat "
        f"{words.remat(choice.remat)} ({choice.step_seconds:.4g} s)"
    )
