"""Layers in stages: every stage works on another microbatch at the same time.

All stages are one array program. What a stage works on is row z of arrays with a first
dim Z, divided over the mesh axis ``stage``; a tick is every stage's own chunk of layers
(`jax.vmap` over Z), then each row is handed to the next stage. The form is GSPMD's (Xu
et al. 2021, section 3.3). Everything a block does over other axes stays as it is, since
no axis is manual where a block runs, and the backward pass is the forward one
differentiated: the ticks in reverse, the rows handed back.

Copies of a stage over the axis ``data`` may be rows of a dim R of their own, weights
included: the gradients of a copy's weights then add up on it, and the copies' are
summed once a step, where the weights are copied (`copied`), and not at every tick.

A stage of a device that has nothing to do at a tick works all the same, on a microbatch
that is there (never on zeros, whose norms have no gradient), and its result is dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from scaling_lab.parallel import chunks, schedules
from scaling_lab.parallel.chunks import Plan
from scaling_lab.parallel.verbs import Batch

Array = jax.Array

#: The mesh axis that stages are divided over, and the one that copies of them are.
AXIS, REPLICAS = "stage", "data"


class Ticks(NamedTuple):
    """What each stage does, by tick t and stage Z, as numbers.

    Attributes:
      microbatch_tZ: which it works on; where it is idle, one that is there.
      chunk_tZ: which of its chunks of layers.
      busy_tZ: whether it has anything to do.
      finished_M: for every microbatch the tick at which its last layer is done.
    """

    microbatch_tZ: np.ndarray
    chunk_tZ: np.ndarray
    busy_tZ: np.ndarray
    finished_M: np.ndarray


@functools.cache
def ticks(stages: int, microbatches: int, virtual: int) -> Ticks:
    """The forward pass of GPipe, or of interleaved stages, as numbers."""
    kind = "interleaved" if virtual > 1 else "gpipe"
    table = schedules.forward_ticks(schedules.make(kind, stages, microbatches, virtual))
    shape = (len(table.rows), stages)
    microbatch, chunk = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    busy, finished = np.zeros(shape, bool), np.zeros(microbatches, np.int32)
    for tick, row in enumerate(table.rows):
        for stage, task in enumerate(row):
            if task is None:
                # Before its first task the first microbatch, after its last the last.
                microbatch[tick, stage] = 0 if tick < stage else microbatches - 1
                continue
            microbatch[tick, stage] = task.microbatch
            chunk[tick, stage] = task.chunk
            busy[tick, stage] = True
            if (stage, task.chunk) == (stages - 1, virtual - 1):
                finished[task.microbatch] = tick
    return Ticks(microbatch, chunk, busy, finished)


def run(
    plan: Plan,
    stage: Callable[..., tuple[Array, Any]],
    params: Any,
    x_BTD: Array,
    per_batch: Batch,
) -> tuple[Array, Any]:
    """Takes every microbatch through every chunk.

    Args:
      stage: ``(params, chunk, exists, x_BTD, per_batch) -> (x_BTD, aux)``, as
        `chunks.chunk_of` makes it.
      params: of `chunks.arrange`, leaves ``(Z, v, l, …)``.
      x_BTD: of all microbatches; `per_batch` likewise.

    Returns:
      What comes out of the last layer, whole on every stage; what the layers say
      beside it, summed over layers and averaged over microbatches.
    """
    table = ticks(plan.stages, plan.microbatches, plan.virtual)
    x_MBTD = cut(plan, x_BTD, plan.rows)
    parts = {key: cut(plan, array, plan.tokens) for key, array in per_batch.items()}
    # Every stage has a copy of its own, so that what comes back for it going backwards
    # is added up once, at the end, and not at every tick.
    first_t = table.microbatch_tZ[:, 0]
    entering_tZBTD = on_stages(plan, _rows(x_MBTD, first_t)[:, None], 1)
    enters_tZ = table.busy_tZ & (table.chunk_tZ == 0) & (np.arange(plan.stages) == 0)
    exists_Zvl = jnp.asarray(chunks.exists(plan))

    def one(params, exists_vl, chunk, microbatch, x_BTD, parts):
        own = jax.tree.map(lambda a_MB: chunks.pick(a_MB, microbatch), parts)
        return stage(params, chunk, exists_vl, x_BTD, own)

    stage = on_replicas(plan, stage)
    every = jax.vmap(one, (0, 0, 0, 0, 0, None), spmd_axis_name=AXIS)

    def tick(held_ZBTD: Array, step: Any) -> Any:
        entering_ZBTD, enters_Z, chunk_Z, microbatch_Z = step
        held_ZBTD = where(enters_Z, entering_ZBTD, held_ZBTD)
        held_ZBTD, aux = every(
            params, exists_Zvl, chunk_Z, microbatch_Z, held_ZBTD, parts
        )
        held_ZBTD = constrain(plan, held_ZBTD, (AXIS, *plan.rows))
        return handed_on(plan, held_ZBTD), (held_ZBTD, aux)

    held_ZBTD = on_stages(plan, x_MBTD[:1], 0)
    steps = (enters_tZ, table.chunk_tZ, table.microbatch_tZ)
    steps = (entering_tZBTD, *map(jnp.asarray, steps))
    _, (out_tZBTD, aux) = jax.lax.scan(tick, held_ZBTD, steps)
    last_tZBTD = _rows(out_tZBTD, table.finished_M)
    out_MBTD = of_stage(plan, last_tZBTD, plan.stages - 1)
    return uncut(plan, out_MBTD), _mean(plan, table, aux)


def on_replicas(
    plan: Plan, stage: Callable[..., tuple[Array, Any]]
) -> Callable[..., tuple[Array, Any]]:
    """A stage whose weights and sequences begin with R, if there are several copies."""
    if plan.replicas == 1:
        return stage
    return jax.vmap(stage, (0, None, None, 0, 0), spmd_axis_name=REPLICAS)


def copied(plan: Plan, array: Array) -> Array:
    """An arranged weight ``(Z, v, …)`` as ``(Z, R, v, …)``, to be put where it is used.

    Going back, this is where the copies' gradients are summed.
    """
    if plan.replicas == 1:
        return array
    shape = (array.shape[0], plan.replicas, *array.shape[1:])
    return jnp.broadcast_to(array[:, None], shape)


def copies(plan: Plan, spec: PartitionSpec) -> PartitionSpec:
    """Where an arranged weight's copies live."""
    if plan.replicas == 1:
        return spec
    return PartitionSpec(spec[0], REPLICAS, *spec[1:])


def on_whole(plan: Plan, after: Callable[..., Any]) -> Callable[..., Any]:
    """`alternating.Work.after` for a microbatch that lies in copies, ``(R, B, …)``."""
    if plan.replicas == 1:
        return after

    def of_copies(x_BTD: Array, *rest: Any) -> Any:
        x_BTD = rearrange(x_BTD, "r b ... -> (r b) ...")
        sums, (d_BTD, d_aux) = after(constrain(plan, x_BTD, _whole_rows(plan)), *rest)
        d_BTD = rearrange(d_BTD, "(r b) ... -> r b ...", r=plan.replicas)
        return sums, (constrain(plan, d_BTD, plan.rows), d_aux)

    return of_copies


def uncut(plan: Plan, x_MBTD: Array) -> Array:
    """The inverse of `cut`, for what is handed on."""
    form = "m b t d -> (b m) t d" if plan.replicas == 1 else "m r b t d -> (r b m) t d"
    return constrain(plan, rearrange(x_MBTD, form), _whole_rows(plan))


def _whole_rows(plan: Plan) -> Any:
    if plan.replicas == 1:
        return plan.rows
    copies, rows, *rest = plan.rows
    return ((*copies, *rows), *rest)


def _rows(array: Array, numbers: np.ndarray) -> Array:
    """Rows by number, where they stand side by side without looking them up."""
    first, count = int(numbers[0]), len(numbers)
    if np.array_equal(numbers, first + np.arange(count)):
        return jax.lax.slice_in_dim(array, first, first + count)
    return jnp.take(array, numbers, 0, mode="clip")


def cut(plan: Plan, array: Array, axes: Any) -> Array:
    """``(B, …)`` as M microbatches of every M-th sequence.

    Every M-th keeps each device's sequences where they are.
    """
    form = "(b m) ... -> m b ..."
    sizes = {"m": plan.microbatches}
    if plan.replicas > 1:
        form, sizes = "(r b m) ... -> m r b ...", sizes | {"r": plan.replicas}
    return constrain(plan, rearrange(array, form, **sizes), (None, *axes))


def constrain(plan: Plan, array: Array, axes: Any) -> Array:
    """The array where its dims are divided over these mesh axes."""
    sharding = NamedSharding(plan.mesh, _spec(axes[: array.ndim]))
    return jax.lax.with_sharding_constraint(array, sharding)


def _spec(axes: Any) -> PartitionSpec:
    return PartitionSpec(*(axis or None for axis in axes))


def on_stages(plan: Plan, array: Array, before: int) -> Array:
    """A copy for every stage, of an array with a dim of 1 in Z's place."""
    shape = (*array.shape[:before], plan.stages, *array.shape[before + 1 :])
    axes = (*(None,) * before, AXIS, *plan.rows)
    return constrain(plan, jnp.broadcast_to(array, shape), axes)


def handed_on(plan: Plan, held_ZBTD: Array, *, back: bool = False) -> Array:
    """Each stage's result with the next one, or the one before, in a ring."""
    return _round(plan, held_ZBTD, _spec((AXIS, *plan.rows)), -1 if back else 1)


def vectors_on(plan: Plan, held_Z: Array, *, back: bool = False) -> Array:
    """`handed_on` of a vector that every stage has, if there is anything in it."""
    if not held_Z.size:
        return held_Z
    return _round(plan, held_Z, _spec((AXIS, ())), -1 if back else 1)


def _round(plan: Plan, held: Array, spec: PartitionSpec, step: int) -> Array:
    ring = [(stage, (stage + step) % plan.stages) for stage in range(plan.stages)]
    return jax.shard_map(
        lambda own: jax.lax.ppermute(own, AXIS, ring),
        mesh=plan.mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )(held)


def of_stage(plan: Plan, out_MZBTD: Array, stage: int) -> Array:
    """What one stage has, on all of them: they share the work of both ends."""
    own_Z = np.arange(plan.stages) == stage
    masked = where(jnp.asarray(own_Z)[None], out_MZBTD, 0)
    return constrain(plan, jnp.sum(masked, 1), (None, *plan.rows))


def on_slots(plan: Plan, array_ZBTD: Array, slots: int) -> Array:
    """Room for what so many ticks leave behind, filled with what is there."""
    room = jnp.broadcast_to(array_ZBTD, (slots, *array_ZBTD.shape))
    return constrain(plan, room, (None, AXIS, *plan.rows))


def where(chosen: Array, array: Array, other: Any) -> Array:
    """`jnp.where` by the first dims."""
    chosen = chosen.reshape(*chosen.shape, *(1,) * (array.ndim - chosen.ndim))
    return jnp.where(chosen, array, other)


def _mean(plan: Plan, table: Ticks, aux: Any) -> Any:
    """Summed over the stages that had something to do, averaged over microbatches."""
    busy_tZ = jnp.asarray(table.busy_tZ)

    def one(aux_tZ: Array) -> Array:
        total = jnp.sum(where(busy_tZ, aux_tZ, jnp.zeros_like(aux_tZ)), (0, 1))
        return total / plan.microbatches

    return jax.tree.map(one, aux)
