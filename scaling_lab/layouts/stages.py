"""Pipelines by layout: where layers rest, and the stack over the axis ``stage``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from scaling_lab import dims
from scaling_lab.layouts import later
from scaling_lab.layouts.copies import copies_of
from scaling_lab.layouts.mesh import partition
from scaling_lab.layouts.moves import Moves, gather
from scaling_lab.layouts.tables import Layout, Table, listed
from scaling_lab.parallel import alternating, chunks, keeping, pipeline, stacked
from scaling_lab.parallel.verbs import Batch, Segment

Array = jax.Array
AXIS = pipeline.AXIS


def stages_of(layout: Layout) -> int:
    """How many stages a layout has."""
    return layout.mesh.get(AXIS, 1)


def virtual_of(layout: Layout) -> int:
    """Chunks of layers on one stage: ``interleaved=2`` binds the stack to two."""
    _, _, count = layout.mechanism("stack", "gpipe").partition("=")
    return int(count or 1)


def schedule_of(layout: Layout) -> str:
    """How the stages take turns: gpipe, interleaved, 1f1b or zero_bubble."""
    return layout.mechanism("stack", "gpipe").partition("=")[0]


def alternates(layout: Layout) -> bool:
    """Whether stages go forward and backward in turn (``+1f1b``, ``+zero_bubble``).

    Each layer then goes forward once more before it goes backward.
    """
    return layout.mechanism("stack", "") in ("1f1b", "zero_bubble")


def makes_later(layout: Layout) -> bool:
    """Whether weights' gradients are made after those of inputs (``+zero_bubble``)."""
    return layout.mechanism("stack", "") == "zero_bubble"


def gathers_by_hand(letters: str) -> bool:
    """Whether a layer gathers a weight of these dims itself, as experts do."""
    return letters.removeprefix("L").startswith("E")


def fit_stages(layout: Layout, depths: Sequence[int], vocabulary: int) -> Layout:
    """The layout with its layers resting where they can.

    Where a stage's layers stand one after another and are as many on every stage, dim L
    rests divided over ``stage`` and nothing is moved. Where they do not (several chunks
    a stage, or a depth that does not divide), each layer rests divided by its width
    instead, and a step begins with an all-to-all that brings every stage its layers,
    and ends with one that takes their gradients back. To rest in another order than
    the model's would save both, but then every checkpoint, and whoever looks at a
    parameter, would have to know of it.

    Args:
      depths: layers of every segment. vocabulary: rows of the embedding, which stays
        whole on every stage where it does not divide over them.
    """
    stages = stages_of(layout)
    if stages == 1:
        return layout
    tables = {kind: getattr(layout, kind) for kind in _KINDS}
    if virtual_of(layout) > 1 or any(depth % stages for depth in depths):
        tables = {
            kind: table if kind == "acts" or table is None else _by_width(table)
            for kind, table in tables.items()
        }
    if vocabulary % layout.over(layout.spec("acts", "V")):
        tables = {
            kind: None if table is None else _without(table, "V")
            for kind, table in tables.items()
        }
    return dataclasses.replace(layout, **tables)


def passes(layout: Layout, microbatches: int) -> float:
    """How often in a pass a device does as much as all layers on one microbatch.

    Without stages once for every microbatch; of a pipeline idle stages work as well.
    """
    stages, virtual = stages_of(layout), virtual_of(layout)
    return (microbatches * virtual + stages - 1) / (stages * virtual)


_KINDS = ("params", "acts", "grads", "optimizer")


def _axes(table: Table, letter: str) -> tuple[str, ...]:
    return listed(table.get(letter))


def _without(table: Table, letter: str) -> Table:
    """The table with a dim that stays whole on every stage."""
    axes = tuple(axis for axis in _axes(table, letter) if axis != AXIS)
    return {**table, letter: axes or None}


def _by_width(table: Table) -> Table:
    """The table with layers divided by their width and not by their number.

    ``stage`` comes last, so that what moves is the innermost part of a width.
    """
    if AXIS not in _axes(table, "L"):
        return table
    width = _axes(table, "D")
    changed = {**_without(table, "L"), "D": (*width, AXIS)}
    for ends in ("VD", "DV"):  # divided over the stages by their vocabulary already
        own = table.get(ends) or {}
        changed[ends] = {"D": width or None, **own}
    return changed


def through_stages(
    place: Any, segments: Sequence[Segment], x_BTD: Array, per_batch: Batch
) -> tuple[Array, Any]:
    """`Verbs.stack` over the stages, one segment after another.

    Args:
      place: the `Placement` whose verbs the layers use.
    """
    auxes = []
    for segment in segments:
        copies = copies_of(place, within_stage(place), segment, x_BTD, per_batch)
        staged = _staged(place, segment, copies)
        arranged = staged.arranged(segment.params)
        x_BTD, aux = pipeline.run(staged.plan, staged.stage, arranged, x_BTD, per_batch)
        auxes.append(aux)
    return x_BTD, auxes


def alternate(
    place: Any, segment: Any, after: Callable[..., Any], inputs: tuple[Array, Batch]
) -> tuple[Any, Any, Array]:
    """A segment forward and backward in turn; see `parallel.alternating`.

    Args:
      segment: block and parameters. after: as `alternating.Work` takes it.
      inputs: of all microbatches, what goes into the first layer, and `per_batch`.

    Returns:
      the sums of `after`; gradients of the parameters; that of the first layer's input.
    """
    segment, x_BTD, per_batch = Segment(*segment), *inputs
    late, made_later = makes_later(place.layout), None
    inner = within_stage(place)
    copies = 1 if late else copies_of(place, inner, segment, *inputs)
    staged = _staged(place, segment, copies)
    if late:
        count = place.microbatches
        parts = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((len(a) // count, *a.shape[1:]), a.dtype),
            (x_BTD, per_batch),
        )
        found = later.taken_apart(staged.inner, segment, *parts)
        segment_with = segment._replace(block=later.block_of(segment, found))
        made_later = later.later(staged.plan, staged.inner, found)
        staged = _staged(place, segment_with, copies)
    arranged, back = jax.vjp(staged.arranged, segment.params)
    work = alternating.Work(staged.stage, after, staged.add_up, made_later)
    sums, layers, d_BTD = alternating.run(staged.plan, work, arranged, *inputs)
    return sums, back(layers)[0], d_BTD


class _Staged(NamedTuple):
    """A segment made ready: its plan, how arrays move inside a stage, one chunk of it,
    how its weights are arranged, and where their gradients add up."""

    plan: chunks.Plan
    inner: Any
    stage: Callable[..., tuple[Array, Any]]
    arranged: Callable[[Any], dict[str, Array]]
    add_up: Callable[[Any], dict[str, Array]]


def within_stage(place: Any, copies: int = 1) -> Any:
    """How arrays move where all of an array program is one stage's, or none's.

    Args:
      copies: of the stage; where there are several, all is one copy's.
    """
    outside = (AXIS,) if copies == 1 else (AXIS, pipeline.REPLICAS)
    mesh = {axis: n for axis, n in place.layout.mesh.items() if axis not in outside}
    return dataclasses.replace(
        place,
        layout=dataclasses.replace(place.layout, mesh=mesh),
        attend_with=place.attend_stacked or place.attend_with,
        attend_chosen=stacked.as_sequences(place.attend_chosen)
        if place.attend_stacked
        else place.attend_chosen,
    )


def _gathered(inner: Any, params: Mapping[str, Any]) -> Any:
    """The same where weights come gathered, once for all ticks: ``+gather_once``.

    Their gradients are reduced at every tick all the same, and rest where they did.
    Not so experts: what they gather by hand, and scatter going back, are their own.
    """
    layout = inner.layout
    if layout.gather == "layer":
        return inner
    rests = dict(layout.acts)
    for name in params:
        letters = dims.letters(name).removeprefix("L")
        if gathers_by_hand(letters):
            spec = layout.spec("params", letters, name)
            rests[letters] = dict(zip(letters, spec, strict=True))
    layout = dataclasses.replace(layout, params=rests, grads=layout.table("grads"))
    return dataclasses.replace(inner, layout=layout)


def _staged(place: Any, segment: Segment, copies: int) -> _Staged:
    inner = _gathered(within_stage(place, copies), segment.params)
    plan = _plan(place, inner, segment.params, copies)
    policy = keeping.with_residual(place.remat, place.residual)
    block = functools.partial(segment.block, inner)
    block = keeping.remat(block, policy, regather=inner.gathers(segment.params))

    def arranged(params: Any) -> dict[str, Array]:
        return {
            dims.unstacked(name): _arranged(plan, place, inner, name, array)
            for name, array in params.items()
        }

    def add_up(gradients: Any) -> dict[str, Array]:
        placed = {}
        for name, array in gradients.items():
            one = _on_stage(plan, inner, "grads", f"L{dims.letters(name)}", name)
            every = NamedSharding(plan.mesh, pipeline.copies(plan, one.spec))
            placed[name] = jax.lax.with_sharding_constraint(array, every)
        return placed

    chunk = chunks.chunk_of(plan, block, policy, place.compute)
    return _Staged(plan, inner, chunk, arranged, add_up)


def _on_stage(
    plan: chunks.Plan, inner: Moves, kind: str, letters: str, name: str
) -> NamedSharding:
    """Of an arranged weight, every stage's own layers on it."""
    spec = inner.layout.spec(kind, letters, name)
    return NamedSharding(plan.mesh, partition(((AXIS,), (), (), *spec[1:])))


def _plan(
    place: Any, inner: Moves, params: Mapping[str, Any], copies: int
) -> chunks.Plan:
    first = () if copies == 1 else ((pipeline.REPLICAS,),)
    depth = len(next(iter(params.values())))
    stages, virtual = stages_of(place.layout), virtual_of(place.layout)
    return chunks.Plan(
        mesh=place.mesh,
        rows=(*first, *inner.layout.spec("acts", "BTD")),
        tokens=(*first, *inner.layout.spec("acts", "BT")),
        stages=stages,
        microbatches=place.microbatches,
        # A short segment, such as a few dense layers before the rest, goes once round.
        virtual=1 if depth % (stages * virtual) else virtual,
        depth=depth,
        unroll=place.unroll,
        replicas=copies,
    )


def _arranged(
    plan: chunks.Plan, place: Moves, inner: Moves, name: str, array: Array
) -> Array:
    """A stacked weight with every stage's layers on that stage; its gradient back.

    The gradient adds up on its stage, once for all ticks, and goes to where it rests
    before it is put in the order of layers: no stage holds the others' in between.
    """
    letters = dims.letters(name)
    used = _on_stage(plan, inner, "params", letters, name)
    adds_up = _on_stage(plan, inner, "grads", letters, name)
    layers, *rest = place.layout.spec("grads", letters, name)
    rests = NamedSharding(plan.mesh, partition((layers, (), (), *rest)))
    array = gather(chunks.arrange(plan, array), used, rests)
    specs = (pipeline.copies(plan, each.spec) for each in (used, adds_up))
    places = (NamedSharding(plan.mesh, spec) for spec in specs)
    return gather(pipeline.copied(plan, array), *places)
