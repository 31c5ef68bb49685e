"""1F1B as one array program: in every tick each stage goes forward, then backward.

A microbatch's backward pass begins in the tick in which its forward pass ends, so no
stage holds more than 2Z - 1 of them, however many a step has; GPipe holds all. The loss
of a microbatch is therefore made inside the loop, by all stages at once. There are as
many ticks as GPipe has in each direction, Z - 1 of them forward alone and Z - 1
backward alone, so the bubble is GPipe's. The order is that of `schedules.eager_1f1b`.

Gradients are made by hand: what is kept of a forward pass is each stage's input, and
its backward pass makes the rest again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from scaling_lab.parallel import chunks, pipeline
from scaling_lab.parallel.chunks import Plan
from scaling_lab.parallel.verbs import Batch

Array = jax.Array


class Held(NamedTuple):
    """What the loop carries.

    Attributes:
      x_ZBTD: what each stage goes forward with next. d_ZBTD: and backward with.
      saved_RZBTD: inputs of the last R forward passes, by tick modulo R.
      layers: gradients of the layers so far. rest: sums of what `after` gives.
    """

    x_ZBTD: Array
    d_ZBTD: Array
    saved_RZBTD: Array
    layers: Any
    rest: Any


class Work(NamedTuple):
    """What is done with a microbatch.

    Attributes:
      stage: as `pipeline.run` takes it.
      after: ``(x_BTD, microbatch) -> (sums, d_BTD)``: what comes after the last layer,
        to be summed over microbatches, and the gradient of the last layer's result.
      add_up: places a tree of the layers' gradients where they add up.
    """

    stage: Callable[..., tuple[Array, Any]]
    after: Callable[[Array, Array], tuple[Any, Array]]
    add_up: Callable[[Any], Any]


def run(
    plan: Plan, work: Work, params: Any, x_BTD: Array, per_batch: Batch
) -> tuple[Any, Any, Array]:
    """Takes every microbatch forward and backward.

    Returns:
      the sums of `after`; gradients of the layers, as `params`; that of ``x_BTD``.

    Raises:
      ValueError: layers say something beside their result, which is not carried here.
    """
    stages, count = plan.stages, plan.microbatches
    x_MBTD = pipeline.cut(plan, x_BTD, plan.rows)
    parts = {key: pipeline.cut(plan, a, plan.tokens) for key, a in per_batch.items()}
    loop = _Loop(plan, work, params, x_MBTD, parts)
    held = loop.start()
    ahead, busy = stages - 1, stages - 1 + count

    held, _ = jax.lax.scan(loop.forward, held, jnp.arange(ahead))
    held, some_tZBTD = jax.lax.scan(loop.both, held, jnp.arange(ahead, busy))
    last = jnp.arange(busy, busy + stages - 1)
    held, rest_tZBTD = jax.lax.scan(loop.backward, held, last)
    # The first stage is done with the first microbatch at tick 2(Z - 1).
    d_tZBTD = jnp.concatenate([some_tZBTD, rest_tZBTD])[stages - 1 :]
    d_MBTD = pipeline.of_stage(plan, d_tZBTD, 0)
    d_BTD = rearrange(d_MBTD, "m b t d -> (b m) t d")
    return held.rest, held.layers, pipeline.constrain(plan, d_BTD, plan.rows)


class _Loop:
    """The three kinds of ticks."""

    def __init__(self, plan: Plan, work: Work, params, x_MBTD: Array, parts: Batch):
        self.plan, self.work, self.params = plan, work, params
        self.x_MBTD, self.parts = x_MBTD, parts
        self.stage_Z = jnp.arange(plan.stages)
        self.exists_Zvl = jnp.asarray(chunks.exists(plan))
        self.slots = 2 * plan.stages - 1

        def one(params, exists_vl, microbatch, x_BTD, parts):
            own = jax.tree.map(lambda a: chunks.pick(a, microbatch), parts)
            x_BTD, aux = work.stage(params, jnp.int32(0), exists_vl, x_BTD, own)
            if jax.tree.leaves(aux):
                raise ValueError(
                    "layers that say something beside their result (experts) go "
                    "through stages by gpipe or interleaved; leave +1f1b out"
                )
            return x_BTD

        self.every = jax.vmap(one, (0, 0, 0, 0, None), spmd_axis_name=pipeline.AXIS)

    def start(self) -> Held:
        """Nothing done yet; stages begin with what is there."""
        x_ZBTD = pipeline.on_stages(self.plan, self.x_MBTD[:1], 0)
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        shapes, _ = jax.eval_shape(self.work.after, self.x_MBTD[0], jnp.int32(0))
        return Held(
            x_ZBTD,
            jnp.zeros_like(x_ZBTD),
            pipeline.on_slots(self.plan, x_ZBTD, self.slots),
            self.work.add_up(zeros),
            jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes),
        )

    def forward(self, held: Held, tick: Array) -> tuple[Held, None]:
        """Every stage one microbatch forward."""
        return self._forward(held, tick)[0], None

    def both(self, held: Held, tick: Array) -> tuple[Held, Array]:
        """One forward, the loss of what came out, one backward."""
        held, out_ZBTD = self._forward(held, tick)
        x_BTD = pipeline.of_stage(self.plan, out_ZBTD[None], self.plan.stages - 1)[0]
        sums, d_BTD = self.work.after(x_BTD, tick - (self.plan.stages - 1))
        last_Z = self.stage_Z == self.plan.stages - 1
        d_ZBTD = pipeline.where(last_Z, d_BTD[None], held.d_ZBTD)
        rest = jax.tree.map(jnp.add, held.rest, sums)
        return self.backward(held._replace(d_ZBTD=d_ZBTD, rest=rest), tick)

    def backward(self, held: Held, tick: Array) -> tuple[Held, Array]:
        """Every stage one microbatch backward."""
        since_Z = 2 * (self.plan.stages - 1 - self.stage_Z)
        number_Z = tick - 2 * (self.plan.stages - 1) + self.stage_Z
        busy_Z = (number_Z >= 0) & (number_Z < self.plan.microbatches)
        d_ZBTD = pipeline.where(busy_Z, held.d_ZBTD, jnp.zeros_like(held.d_ZBTD))
        x_ZBTD = jax.vmap(chunks.pick, (1, 0), spmd_axis_name=pipeline.AXIS)(
            held.saved_RZBTD, (tick - since_Z) % self.slots
        )
        x_ZBTD = pipeline.constrain(self.plan, x_ZBTD, (pipeline.AXIS, *self.plan.rows))

        def again(params: Any, x_ZBTD: Array) -> Array:
            numbers = self._clipped(number_Z)
            return self.every(params, self.exists_Zvl, numbers, x_ZBTD, self.parts)

        _, back = jax.vjp(again, self.params, x_ZBTD)
        own, d_ZBTD = back(d_ZBTD)
        layers = self.work.add_up(jax.tree.map(jnp.add, held.layers, own))
        d_ZBTD = pipeline.constrain(self.plan, d_ZBTD, (pipeline.AXIS, *self.plan.rows))
        handed = pipeline.handed_on(self.plan, d_ZBTD, back=True)
        return held._replace(d_ZBTD=handed, layers=layers), d_ZBTD

    def _forward(self, held: Held, tick: Array) -> tuple[Held, Array]:
        first_BTD = chunks.pick(self.x_MBTD, self._clipped(tick))
        x_ZBTD = pipeline.where(self.stage_Z == 0, first_BTD[None], held.x_ZBTD)
        x_ZBTD = pipeline.constrain(self.plan, x_ZBTD, (pipeline.AXIS, *self.plan.rows))
        saved = jax.lax.dynamic_update_index_in_dim(
            held.saved_RZBTD, x_ZBTD, tick % self.slots, 0
        )
        number_Z = self._clipped(tick - self.stage_Z)
        out_ZBTD = self.every(
            self.params, self.exists_Zvl, number_Z, x_ZBTD, self.parts
        )
        out_ZBTD = pipeline.constrain(
            self.plan, out_ZBTD, (pipeline.AXIS, *self.plan.rows)
        )
        handed = pipeline.handed_on(self.plan, out_ZBTD)
        return held._replace(x_ZBTD=handed, saved_RZBTD=saved), out_ZBTD

    def _clipped(self, number: Array) -> Array:
        """A microbatch that is there, of a stage that may have nothing to do."""
        return jnp.clip(number, 0, self.plan.microbatches - 1)


def order(stages: int, microbatches: int) -> list[list[tuple[str, int]]]:
    """What each stage does in the loop above, in order, as the loop counts it."""
    done: list[list[tuple[str, int]]] = [[] for _ in range(stages)]
    for tick in range(microbatches + 2 * (stages - 1)):
        for stage, own in enumerate(done):
            forward, backward = tick - stage, tick - 2 * (stages - 1) + stage
            going = tick < stages - 1 + microbatches
            if going and 0 <= forward < microbatches:
                own.append(("F", forward))
            if tick >= stages - 1 and 0 <= backward < microbatches:
                own.append(("B", backward))
    return done
