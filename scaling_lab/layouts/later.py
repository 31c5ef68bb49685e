"""Zero bubble by layout: layers whose weights' gradients are made when there is time.

See `parallel.apart` for how a layer's backward pass is taken apart, and
`parallel.alternating` for when its parts are done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from scaling_lab import dims
from scaling_lab.layouts.mesh import partition
from scaling_lab.parallel import alternating, apart, chunks, pipeline
from scaling_lab.parallel.verbs import Batch, Segment

Array = jax.Array
AXIS = pipeline.AXIS


def taken_apart(inner: Any, segment: Segment, x_BTD: Any, per_batch: Any) -> Any:
    """The segment's contractions by verb; see `apart.contractions`.

    Args:
      inner: the placement of one stage.
      x_BTD: of a microbatch, as a shape; `per_batch` likewise.
    """

    def layer(tap: apart.Tap, params: Any, x_BTD: Array, per_batch: Batch) -> Any:
        place = dataclasses.replace(inner, tap=tap)
        return segment.block(place, params, x_BTD, per_batch, None)[:2]

    one = {
        dims.unstacked(name): jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
        for name, a in segment.params.items()
    }
    return apart.contractions(layer, one, x_BTD, per_batch)


def block_of(
    segment: Segment, found: Mapping[str, apart.Contraction]
) -> Callable[..., Any]:
    """The segment's block; its parameters are its own and the room for what is kept."""
    kept = apart.letters(found)

    def block(place: Any, both: Any, x_BTD: Array, per_batch: Batch, cache: Any) -> Any:
        params = {name: a for name, a in both.items() if name not in kept}
        room = {name: a for name, a in both.items() if name in kept}
        place = dataclasses.replace(place, tap=apart.tap_of(found, room))
        return segment.block(place, params, x_BTD, per_batch, cache)

    return block


def later(
    plan: chunks.Plan, inner: Any, found: Mapping[str, apart.Contraction]
) -> alternating.Later:
    """How the gradients of a segment's weights are made, and where all of it is."""
    names = apart.weights(found)
    letters = apart.letters(found)

    def gradients(params: Mapping[str, Array], kept: Mapping[str, Array]) -> Any:
        def layer(_: None, step: Any) -> Any:
            return None, apart.gradients(found, inner.einsum, *step)

        def of_stage(params: Any, kept: Any) -> Any:
            params, kept = jax.tree.map(lambda a_vl: a_vl[0], (params, kept))
            unroll = plan.longest if plan.unroll else 1
            _, own = jax.lax.scan(layer, None, (params, kept), unroll=unroll)
            return jax.tree.map(lambda a_l: a_l[None], own)

        own = {name: params[name] for name in names}
        return jax.vmap(of_stage, spmd_axis_name=AXIS)(own, kept)

    def rest(kept: Mapping[str, Array], slots: int) -> dict[str, Array]:
        lead = (*((),) * bool(slots), (AXIS,), (), ())

        def one(key: str, array: Array) -> Array:
            spec = inner.layout.spec("acts", letters[key], key.rpartition(" ")[0])
            sharding = NamedSharding(plan.mesh, partition((*lead, *spec)))
            return jax.lax.with_sharding_constraint(array, sharding)

        return {key: one(key, array) for key, array in kept.items()}

    room = apart.room(found, (1, plan.longest))
    return alternating.Later(room, frozenset(names), gradients, rest)
