"""Scaling laws, one file each; a file's name is its key.

A file offers ``LAW``: formula, parameters, the columns it needs, published constants.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from scaling_lab.studies.law import Law


def names() -> tuple[str, ...]:
    """Every law's name."""
    return tuple(sorted(each.name for each in pkgutil.iter_modules(__path__)))


def law(name: str) -> Law:
    """The law of that name.

    Raises:
      ValueError: there is none; the message has the nearest.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise ValueError(f"no law {name!r}; {hint}laws: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").LAW
