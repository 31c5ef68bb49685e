"""Whether a pipeline can be, and keeps most of its stages busy."""

from __future__ import annotations

from collections.abc import Sequence

from scaling_lab.layouts.legality import divisors
from scaling_lab.layouts.stages import alternates, stages_of, virtual_of
from scaling_lab.layouts.tables import IllegalLayout, Layout


def check_stages(layout: Layout, layers: int, batch: int, microbatches: int) -> None:
    """Raises unless a pipeline of these stages can be, and keeps most of them busy.

    Args:
      layers: of the model. batch: of a step, in sequences, of all microbatches.

    Raises:
      IllegalLayout: what is too few or too many, and the nearest that is not.
    """
    stages, virtual = stages_of(layout), virtual_of(layout)
    if stages == 1:
        return
    if layers < stages:
        raise IllegalLayout(
            f"layout {layout.name!r}: stage={stages} is more than the L={layers} "
            f"layers, and a stage without one would do nothing; nearest stage: {layers}"
        )
    if layers % (stages * virtual) and virtual > 1:
        near = [n for n in range(2, layers + 1) if layers % (stages * n) == 0]
        near.sort(key=lambda n: abs(n - virtual))
        hint = (
            f"nearest interleaved: {', '.join(map(str, sorted(near[:2])))}"
            if near
            else "leave +interleaved out: one chunk a stage may be uneven"
        )
        raise IllegalLayout(
            f"layout {layout.name!r}: L={layers} layers do not divide into stage="
            f"{stages} × interleaved={virtual} chunks of as many; {hint}"
        )
    grouped = stages if virtual > 1 else 1
    if microbatches < stages or microbatches % grouped:
        legal = [n for n in divisors(batch) if n >= stages and n % grouped == 0]
        legal.sort(key=lambda n: abs(n - microbatches))
        near = (
            f"nearest --accumulate for batch={batch}: {', '.join(map(str, legal[:2]))}"
            if legal
            else f"use a batch that {stages} divides, with --accumulate {stages}"
        )
        share = (stages - 1) / (microbatches * virtual + stages - 1)
        raise IllegalLayout(
            f"layout {layout.name!r}: {microbatches} microbatches (accumulate) "
            + (
                f"for stage={stages} leave stages idle {share:.0%} of the time"
                if microbatches < stages
                else f"are not made of groups of stage={stages}, in which interleaved "
                "stages take them"
            )
            + f"; {near}"
        )


def check_turns(layout: Layout, depths: Sequence[int]) -> None:
    """Raises unless stages that alternate have one kind of layers to alternate over.

    That is the last run of like layers; those before it go through the stages first,
    all microbatches forward and, at the end, all backward.

    Args:
      depths: layers of every run of like ones, in order.

    Raises:
      IllegalLayout: the last run is too short, with what would do.
    """
    stages, last = stages_of(layout), depths[-1]
    if not alternates(layout) or len(depths) == 1:
        return
    if 2 * last <= sum(depths) or last < stages:
        raise IllegalLayout(
            f"layout {layout.name!r}: layers of unlike kinds take turns in runs of "
            f"{', '.join(map(str, depths))}, and stages alternate over the last run, "
            f"which wants most of the layers and one for each of stage={stages}; leave "
            f"+{layout.mechanism('stack', '')} out"
        )
