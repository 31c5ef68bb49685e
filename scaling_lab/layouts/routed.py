"""Where a layer of experts lives, read off a layout's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scaling_lab import dims
from scaling_lab.layouts.tables import Layout, Spec
from scaling_lab.parallel import experts
from scaling_lab.parallel.experts.routing import Tokens


def mechanism(layout: Layout) -> str:
    """How tokens and experts meet: what is bound, else what the axes ask for."""
    divided = bool(layout.spec("acts", "E")[0])
    bound = layout.mechanism("experts", "all_to_all" if divided else "sorted")
    return bound if divided or bound not in experts.APART else "sorted"


def places(
    layout: Layout, mesh: Any, weights: Iterable[str], name: str
) -> experts.Places:
    """The axes of tokens, experts and widths; of each weight at rest and in use.

    Args:
      weights: their names. name: of the verb.
    """
    if mesh is None:
        return experts.Places()
    whole = mechanism(layout) in experts.WHOLE
    rests, used = {}, {}
    for key in weights:
        letters = dims.letters(key)
        wanted = layout.spec("acts", letters, name)
        if whole:
            wanted = tuple(
                () if letter == "E" else axes
                for letter, axes in zip(letters, wanted, strict=True)
            )
        stored = layout.spec("params", letters, key)
        used[key] = wanted
        rests[key] = stored if _begins(stored, wanted) else wanted
    batch, length = layout.spec("acts", "BT")
    out = layout.spec("acts", "BTD", name)[1]
    more, inner = out[len(length) :], layout.spec("acts", "F")[0]
    return experts.Places(
        mesh=mesh,
        tokens=Tokens(batch, length),
        experts=() if whole else layout.spec("acts", "E")[0],
        inner=inner,
        # Straight to where T is divided only if that is where F was.
        more=more if more == inner else (),
        rests=rests,
        used=used,
    )


def _begins(stored: Spec, used: Spec) -> bool:
    """Whether gathering the last axes of each dim is all there is to do."""
    return all(
        rest[: len(axes)] == axes for rest, axes in zip(stored, used, strict=True)
    )
