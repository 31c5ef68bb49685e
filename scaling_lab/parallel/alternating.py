"""1F1B as one array program: in every tick each stage goes forward, then backward.

A microbatch's backward pass begins in the tick in which its forward pass ends, so no
stage holds more than 2Z - 1 of them, however many a step has; GPipe holds all. The loss
of a microbatch is therefore made inside the loop, by all stages at once. There are as
many ticks as GPipe has in each direction, Z - 1 of them forward alone and Z - 1
backward alone, so the bubble is GPipe's. The order is that of `schedules.eager_1f1b`.

Zero bubble takes the backward pass apart (`apart`): stage z makes the gradients of its
weights z ticks after that of its input, so all stages make them for one microbatch at
once, in the last M ticks, and none is ever idle at it. The bubble costs Z - 1 times a
forward pass and an input's gradient, as that of ZB-H1 does where tasks go in step (Qi
et al. 2023, section 2.2). What weights' gradients are made of is held for Z ticks. The
order is that of `schedules.eager_zb_h1`.

Gradients are made by hand: what is kept of a forward pass is each stage's input, and
its backward pass makes the rest again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from scaling_lab.parallel import chunks, order, pipeline
from scaling_lab.parallel.chunks import Plan
from scaling_lab.parallel.pipeline import AXIS
from scaling_lab.parallel.schedules import in_step
from scaling_lab.parallel.verbs import Batch

Array = jax.Array
#: Gradients, or what they are made of, by name.
Named = Mapping[str, Array]


class Later(NamedTuple):
    """How gradients of some weights are made after those of the layers' input.

    Attributes:
      room: for what is kept of one stage and tick, zeros.
      names: of the parameters.
      gradients: ``(params, kept) -> gradients`` of all stages.
      rest: places what is kept, of so many slots or of none.
    """

    room: Named
    names: frozenset[str]
    gradients: Callable[[Named, Named], Named]
    rest: Callable[[Named, int], Named]


class Work(NamedTuple):
    """What is done with a microbatch.

    Attributes:
      stage: as `pipeline.run` takes it; its parameters are `params`, and where weights'
        gradients are made later what `Later.room` gives.
      after: ``(x_BTD, aux, microbatch) -> (sums, (d_BTD, d_aux))``: what comes after
        the last layer, to be summed over microbatches, and the gradients of the last
        layer's result and of what the layers say beside it, summed over them.
      add_up: places a tree of the layers' gradients where they add up.
      later: ``None`` where all gradients of a layer are made at once.
    """

    stage: Callable[..., tuple[Array, Any]]
    after: Callable[[Array, Any, Array], tuple[Any, tuple[Array, Any]]]
    add_up: Callable[[Any], Any]
    later: Later | None = None


class Held(NamedTuple):
    """What the loop carries.

    Attributes:
      x_ZBTD: what each stage goes forward with next. d_ZBTD: and backward with.
      aux_Z: sums of what the layers before said, a vector. d_aux_Z: their gradients.
      saved_RZBTD: inputs of the last R forward passes, by tick modulo R.
      kept_R: what weights' gradients are made of, of the last Z ticks.
      layers: gradients of the layers so far. rest: sums of what `after` gives.
    """

    x_ZBTD: Array
    d_ZBTD: Array
    aux_Z: Array
    d_aux_Z: Array
    saved_RZBTD: Array
    kept_R: Named
    layers: dict[str, Array]
    rest: Any


def _phases(plan: Plan, apart: bool) -> Iterator[tuple[str, Array]]:
    """Runs of ticks in which the same is done."""
    stages, count = plan.stages, plan.microbatches
    ticks = range(count + 2 * (stages - 1))
    same = itertools.groupby(ticks, lambda t: in_step.does(t, stages, count, apart))
    for doing, run in same:
        yield doing, jnp.array(list(run))


def run(
    plan: Plan, work: Work, params: Any, x_BTD: Array, per_batch: Batch
) -> tuple[Any, Any, Array]:
    """Takes every microbatch forward and backward.

    Returns:
      the sums of `after`; gradients of the layers, as `params`; that of ``x_BTD``.
    """
    x_MBTD = pipeline.cut(plan, x_BTD, plan.rows)
    parts = {key: pipeline.cut(plan, a, plan.tokens) for key, a in per_batch.items()}
    loop = _Loop(plan, work, params, x_MBTD, parts)
    held, found = loop.start(), []
    for doing, ticks in _phases(plan, work.later is not None):

        def step(held: Held, tick: Array, doing: str = doing) -> Any:
            return loop.tick(doing, held, tick)

        held, d_tZBTD = jax.lax.scan(step, held, ticks)
        found += [] if d_tZBTD is None else [d_tZBTD]
    # The first stage is done with the first microbatch at tick 2(Z - 1).
    d_tZBTD = jnp.concatenate(found)[plan.stages - 1 :]
    d_MBTD = pipeline.of_stage(plan, d_tZBTD, 0)
    return held.rest, held.layers, pipeline.uncut(plan, d_MBTD)


class _Loop:
    """What stages do in a tick."""

    def __init__(self, plan: Plan, work: Work, params, x_MBTD: Array, parts: Batch):
        self.plan, self.work, self.params = plan, work, params
        self.x_MBTD, self.parts = x_MBTD, parts
        self.stage_Z = jnp.arange(plan.stages)
        self.exists_Zvl = jnp.asarray(chunks.exists(plan))
        self.slots = 2 * plan.stages - 1
        self.first = {key: a_MB[0] for key, a_MB in parts.items()}
        room = work.later.room if work.later else {}
        self.room = {
            key: jnp.broadcast_to(a, (plan.stages, *a.shape)) for key, a in room.items()
        }

        self.stage = pipeline.on_replicas(plan, work.stage)
        self.after = pipeline.on_whole(plan, work.after)

        def one(params, exists_vl, microbatch, x_BTD, parts):
            own = jax.tree.map(lambda a: chunks.pick(a, microbatch), parts)
            x_BTD, aux = self.stage(params, jnp.int32(0), exists_vl, x_BTD, own)
            return x_BTD, ravel_pytree(aux)[0]

        self.every = jax.vmap(one, (0, 0, 0, 0, None), spmd_axis_name=AXIS)
        self.aux = self._aux()
        self.of_vector = ravel_pytree(self.aux)[1]

    def _aux(self) -> Any:
        """What a stage says beside its result, as zeros."""
        own = jax.tree.map(lambda a: a[0], {**self.params, **self.room})
        exists_vl, chunk = self.exists_Zvl[0], jnp.int32(0)
        _, aux = jax.eval_shape(
            self.stage, own, chunk, exists_vl, self.x_MBTD[0], self.first
        )
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)

    def start(self) -> Held:
        """Nothing done yet; stages begin with what is there."""
        x_ZBTD = pipeline.on_stages(self.plan, self.x_MBTD[:1], 0)
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        first = (self.x_MBTD[0], self.aux, jnp.int32(0))
        shapes, _ = jax.eval_shape(self.after, *first)
        aux_Z = jnp.stack([ravel_pytree(self.aux)[0]] * self.plan.stages)
        return Held(
            x_ZBTD,
            jnp.zeros_like(x_ZBTD),
            aux_Z,
            aux_Z,
            pipeline.on_slots(self.plan, x_ZBTD, self.slots),
            self._empty(),
            self.work.add_up(zeros),
            jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes),
        )

    def _empty(self) -> Named:
        """Room for what Z ticks leave for the gradients of weights."""
        slots, later = self.plan.stages, self.work.later
        if later is None:
            return {}
        return later.rest(
            {k: jnp.zeros((slots, *a.shape), a.dtype) for k, a in self.room.items()},
            slots,
        )

    def tick(self, doing: str, held: Held, tick: Array) -> tuple[Held, Array | None]:
        """Every stage's work of one tick; the gradients of the stages' inputs."""
        d_ZBTD = None
        if "F" in doing:
            held, out = self._forward(held, tick)
            if doing != "F":
                held = self._turn(held, out, tick)
        if doing != "F":
            held, d_ZBTD = self._backward(held, tick)
        if "W" in doing:
            held = self._weights(held, tick)
        return held, d_ZBTD

    def _turn(self, held: Held, out: tuple[Array, Array], tick: Array) -> Held:
        """What came out of the last stage: its loss, and the way back begins."""
        last_Z = self.stage_Z == self.plan.stages - 1
        x_BTD = pipeline.of_stage(self.plan, out[0][None], self.plan.stages - 1)[0]
        aux = self.of_vector(jnp.sum(pipeline.where(last_Z, out[1], 0), 0))
        number = tick - (self.plan.stages - 1)
        sums, (d_BTD, d_aux) = self.after(x_BTD, aux, number)
        return held._replace(
            d_ZBTD=pipeline.where(last_Z, d_BTD[None], held.d_ZBTD),
            d_aux_Z=pipeline.where(last_Z, ravel_pytree(d_aux)[0][None], held.d_aux_Z),
            rest=jax.tree.map(jnp.add, held.rest, sums),
        )

    def _backward(self, held: Held, tick: Array) -> tuple[Held, Array]:
        since_Z = 2 * (self.plan.stages - 1 - self.stage_Z)
        number_Z = tick - 2 * (self.plan.stages - 1) + self.stage_Z
        busy_Z = (number_Z >= 0) & (number_Z < self.plan.microbatches)
        d_ZBTD, d_aux_Z = (
            pipeline.where(busy_Z, d_Z, jnp.zeros_like(d_Z))
            for d_Z in (held.d_ZBTD, held.d_aux_Z)
        )
        x_ZBTD = self._rows(_of_slots(held.saved_RZBTD, (tick - since_Z) % self.slots))
        x_ZBTD = order.after(d_ZBTD, x_ZBTD)
        late = self.work.later.names if self.work.later else frozenset()
        later = {name: a for name, a in self.params.items() if name in late}
        now = {name: a for name, a in self.params.items() if name not in late}

        def again(now: Named, room: Named, x_ZBTD: Array) -> tuple[Array, Array]:
            params, numbers = {**now, **later, **room}, self._clipped(number_Z)
            return self.every(params, self.exists_Zvl, numbers, x_ZBTD, self.parts)

        _, back = jax.vjp(again, now, self.room, x_ZBTD)
        own, kept, d_ZBTD = back((d_ZBTD, d_aux_Z))
        d_ZBTD = self._rows(d_ZBTD)
        return held._replace(
            d_ZBTD=pipeline.handed_on(self.plan, d_ZBTD, back=True),
            d_aux_Z=pipeline.vectors_on(self.plan, d_aux_Z, back=True),
            layers=self._added(held, own),
            kept_R=self._keep(held, kept, tick),
        ), d_ZBTD

    def _added(self, held: Held, own: Named) -> dict[str, Array]:
        added = {name: held.layers[name] + gradient for name, gradient in own.items()}
        return held.layers | self.work.add_up(added)

    def _keep(self, held: Held, kept: Named, tick: Array) -> Named:
        later, slot = self.work.later, tick % self.plan.stages
        if later is None:
            return held.kept_R
        kept = later.rest(kept, 0)
        return {
            key: jax.lax.dynamic_update_index_in_dim(held.kept_R[key], a, slot, 0)
            for key, a in kept.items()
        }

    def _weights(self, held: Held, tick: Array) -> Held:
        """Of each stage's weights the gradients by one microbatch, on all the same."""
        later, slots = self.work.later, self.plan.stages
        assert later is not None
        slot_Z = (tick - self.stage_Z) % slots
        kept = {key: _of_slots(a, slot_Z) for key, a in held.kept_R.items()}
        own = later.gradients(self.params, later.rest(kept, 0))
        return held._replace(layers=self._added(held, own))

    def _forward(self, held: Held, tick: Array) -> tuple[Held, tuple[Array, Array]]:
        first_BTD = chunks.pick(self.x_MBTD, self._clipped(tick))
        first_Z = self.stage_Z == 0
        x_ZBTD = self._rows(pipeline.where(first_Z, first_BTD[None], held.x_ZBTD))
        slot = tick % self.slots
        saved = jax.lax.dynamic_update_index_in_dim(held.saved_RZBTD, x_ZBTD, slot, 0)
        number_Z = self._clipped(tick - self.stage_Z)
        out_ZBTD, aux_Z = self.every(
            {**self.params, **self.room}, self.exists_Zvl, number_Z, x_ZBTD, self.parts
        )
        out_ZBTD = self._rows(out_ZBTD)
        aux_Z = aux_Z + pipeline.where(~first_Z, held.aux_Z, 0)
        return held._replace(
            x_ZBTD=pipeline.handed_on(self.plan, out_ZBTD),
            aux_Z=pipeline.vectors_on(self.plan, aux_Z),
            saved_RZBTD=saved,
        ), (out_ZBTD, aux_Z)

    def _rows(self, array_ZBTD: Array) -> Array:
        return pipeline.constrain(self.plan, array_ZBTD, (AXIS, *self.plan.rows))

    def _clipped(self, number: Array) -> Array:
        """A microbatch that is there, of a stage that may have nothing to do."""
        return jnp.clip(number, 0, self.plan.microbatches - 1)


def _of_slots(array_RZ: Array, slot_Z: Array) -> Array:
    """Of each stage what stands in its own slot."""
    return jax.vmap(chunks.pick, (1, 0), spmd_axis_name=AXIS)(array_RZ, slot_Z)
