"""What a block's backward pass finds again, as a run writes it.

``none`` keeps everything, ``full`` the block's input alone, ``save:A,B`` what those
verbs return, ``recompute:A,B`` everything but that. ``offload:C`` keeps what C returns
in the host's memory; it stands alone or behind what is saved: ``save:A,B;offload:C``.
"""

from __future__ import annotations

from typing import NamedTuple

KINDS = ("none", "full", "save", "recompute", "offload")
FORMS = "none, full, save:VERB,VERB, recompute:VERB,VERB or save:VERB;offload:VERB,VERB"


class Policy(NamedTuple):
    """A policy, taken apart.

    Attributes:
      kind: ``none``, ``full``, ``save`` or ``recompute``.
      names: verbs that are saved, or that are not.
      offloaded: verbs whose results rest in the host's memory; of ``save`` alone.
    """

    kind: str
    names: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The policy as a run writes it."""
        if self.kind in ("none", "full"):
            return self.kind
        parts = [(self.kind, self.names), ("offload", self.offloaded)]
        return ";".join(f"{kind}:{','.join(names)}" for kind, names in parts if names)

    @property
    def kept(self) -> tuple[str, ...]:
        """Verbs whose results are kept by name, wherever."""
        return (*self.names, *self.offloaded) if self.kind == "save" else ()


def parse(text: str) -> Policy:
    """A policy, read.

    Raises:
      ValueError: it is none, with those there are.
    """
    first, apart, second = text.partition(";")
    kind, colon, names = first.partition(":")
    listed = _listed(names)
    if kind in ("none", "full") and not colon and not apart:
        return Policy(kind)
    if kind == "offload" and listed and not apart:
        return Policy("save", (), listed)
    if kind in ("save", "recompute") and listed and not apart:
        return Policy(kind, listed)
    then, _, names = second.partition(":")
    away = _listed(names)
    if kind != "save" or then != "offload" or not listed or not away:
        raise ValueError(f"remat {text!r} is not a policy; say {FORMS}")
    both = [name for name in away if name in listed]
    if both:
        raise ValueError(
            f"remat {text!r} saves {', '.join(both)} and offloads it too; name it once"
        )
    return Policy("save", listed, away)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name for name in names.split(",") if name)
