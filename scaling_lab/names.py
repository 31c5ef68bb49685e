"""Errors that know the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, word: object, known: Iterable[str]) -> str:
    """What to say of a word nobody knows: the nearest that are, then all of them."""
    known = list(known)
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, 2, 0.4)
    hint = f"did you mean {' or '.join(by_lower[n] for n in near)}? " if near else ""
    return f"unknown {what} {word!r}; {hint}there are {', '.join(known)}"


def one_of(what: str, word: object, known: Iterable[str]) -> None:
    """Raises unless a word is known.

    Raises:
      ValueError: with the nearest words and all of them.
    """
    known = list(known)
    if word not in known:
        raise ValueError(unknown(what, word, known))
