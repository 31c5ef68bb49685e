"""A choice as the flags of another trainer, and what of it cannot be said there.

One file a trainer; its name is its key. Each offers ``VERSION``, where its flag names
were read, and ``emit(question, choice) -> Flags``.
"""

from __future__ import annotations

import importlib
import pkgutil

from scaling_lab.names import one_of
from scaling_lab.plan.answer import Choice
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
