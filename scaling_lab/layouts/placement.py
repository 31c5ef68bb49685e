"""A layout bound to a mesh: the six verbs, each bound to its mechanism.

This binding is for Auto mesh axes: it constrains, and XLA's partitioner inserts the
collectives. `explicit.ExplicitPlacement` is the same for Explicit axes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from scaling_lab.layouts import routed, stages
from scaling_lab.layouts.moves import Moves, column_axes
from scaling_lab.layouts.tables import Spec
from scaling_lab.parallel import (
    apart,
    attention,
    chosen,
    chunked,
    context,
    cross_entropy,
    equations,
    experts,
    flash,
    keeping,
    stack,
    take,
)
from scaling_lab.parallel.masks import Batch, Mask
from scaling_lab.parallel.verbs import Routing, Segment, TokenLoss

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Placement(Moves):
    """Binds the verbs of `parallel.verbs.Verbs` to one layout on one mesh.

    Attributes (beside those of `Moves`):
      remat: what the backward pass keeps, as `parallel.keeping.remat` reads it.
      unroll: layers written out instead of scanned.
      together: of scanned layers, how many in one turn of the loop.
      barred: in a loop too, what is made again waits at a barrier for its gradient.
      microbatches: of a step, where the stages of a pipeline take them in turn.
      stack_with: ``(segments, x_BTD, per_batch) -> (x_BTD, auxes)`` instead of the
        layers, to take a model apart at its stack.
      tap: how a contraction is done whose weight's gradient is made later; see
        `parallel.apart`.
      attend_with: the attention of one device over whole rows.
      attend_stacked: the same where stages are stacked, if it is another.
      attend_chosen: the same under a mask with picks.
      attend_kernel: the same in its two passes, for parts of a row.
      attend_residual: `checkpoint_name` by which that keeps what it needs, "" for none;
        several kernels' have a comma between them.
      loss_chunks: how many chunks of the vocabulary the loss is cut into, each made
        again in the backward pass; ``None`` decides.
      loss_elements: logits of one device at a time, where it decides.
      attend_scale, head_scale: what scores of attention and logits are multiplied by,
        beside the root of H.
      group_with: rows times their experts' weights on one device.
    """

    remat: str = "none"
    unroll: bool = False
    together: int = 1
    barred: bool = True
    microbatches: int = 1
    stack_with: Callable[..., tuple[Array, Any]] | None = None
    tap: apart.Tap | None = None
    attend_with: attention.Attend = attention.dense
    attend_stacked: attention.Attend | None = None
    attend_chosen: attention.Attend = chosen.attend
    attend_kernel: flash.Kernel = chunked.KERNEL
    attend_residual: str = attention.RESIDUAL
    loss_chunks: int | None = None
    loss_elements: int = cross_entropy.KEEP_ELEMENTS
    attend_scale: float = 1.0
    head_scale: float = 1.0
    group_with: experts.Grouped = experts.blocked

    def einsum(
        self, equation: str, *operands: Any, name: str, bias: Any = None
    ) -> Array:
        """`Verbs.einsum`: operands moved to where the contraction wants them."""
        operands = tuple(jnp.asarray(operand) for operand in operands)
        equations.check(equation, operands, name)
        terms, output = equations.parse(equation)
        out_spec = self.layout.spec("acts", output, name)

        def product(*operands: Array) -> Array:
            moved = tuple(
                self._operand(operand, term, (terms, output, out_spec), name)
                for operand, term in zip(operands, terms, strict=True)
            )
            return self._contract(equation, moved, out_spec, name)

        with jax.named_scope(name):
            if self.tap is not None:
                result = self.tap(equation, name, product, operands)
            else:
                result = product(*operands)
            if bias is not None:
                result = result + self._bias(jnp.asarray(bias), output, name)
            return checkpoint_name(result, name)

    def take(
        self, table: Any, indices_BT: Array, *, name: str, dims: str = "VD"
    ) -> Array:
        """`Verbs.take`: a plain gather, or one per shard of the table's rows."""
        out_spec = self.layout.spec("acts", "BT" + dims[1:], name)
        rows = tuple(axes or None for axes in self.layout.spec("acts", "BT"))
        with jax.named_scope(name):
            table = jnp.asarray(table)
            columns = column_axes(self.layout, name, dims, table.shape[-1])
            if columns:
                found = take.sharded_columns(
                    self._constrain(table, ((), columns)).astype(self.compute),
                    indices_BT,
                    self.mesh,
                    columns,
                    rows,
                )
                return checkpoint_name(self._constrain(found, out_spec), name)
            # A table of positions has rows called T too, and not divided with them.
            busy = {axis for axes in rows for axis in axes or ()}
            used = tuple(
                tuple(axis for axis in axes if axis not in busy)
                for axes in self.layout.spec("acts", dims, name)
            )
            table = self._use(table, dims, name, used)
            if self.mesh is None:
                return checkpoint_name(take.rows(table, indices_BT), name)
            row_axes = used[0]
            found = take.sharded_rows(
                table, indices_BT, self.mesh, row_axes or None, rows
            )
            return checkpoint_name(self._constrain(found, out_spec), name)

    def attend(
        self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, *, name: str
    ) -> Array:
        """`Verbs.attend`: each device its own rows and heads."""
        batch, length, heads, _ = self.layout.spec("acts", "BTNH", name)
        kv_heads = self.layout.spec("acts", "BSKH", name)[2]
        attend_with = self.attend_with
        if mask.picks_BKQC is not None:
            attend_with = self.attend_chosen
        if length and mask.ordered:
            kernels = context.Kernels(attend_with, self.attend_kernel)
            kind = self.layout.mechanism("attend", "gather")
            attend_with = context.spread(kind, kernels, length)
        else:  # keys of earlier positions: a cache is held whole
            length = ()
        with jax.named_scope(name):
            q_BTNH = scaled(q_BTNH, self.attend_scale)
            whole = not (batch or length or heads)
            # Beside stages a kernel is one device's all the same.
            if self.mesh is None or (whole and self.mesh.size == self.layout.devices):
                result = attend_with(q_BTNH, k_BSKH, v_BSKH, mask)
            else:
                result = attention.by_heads(
                    attend_with,
                    (q_BTNH, k_BSKH, v_BSKH),
                    mask,
                    self.mesh,
                    (batch or None, length or None),
                    (heads or None, kv_heads or None),
                )
            return checkpoint_name(result, name)

    @property
    def residual(self) -> str:
        """`checkpoint_name` by which attention keeps what it needs, if it does."""
        if not self.layout.spec("acts", "BT")[1]:
            return self.attend_residual
        kind = self.layout.mechanism("attend", "gather")
        return context.residual(kind, self.attend_residual)

    def experts(
        self,
        h_BTD: Array,
        router_DE: Any,
        weights: Mapping[str, Any],
        expert: Callable[..., Array],
        *,
        routing: Routing,
        name: str,
        bias_E: Any = None,
    ) -> tuple[Array, dict[str, Array]]:
        """`Verbs.experts`: by the mechanism that the layout binds it to."""
        mechanism = routed.mechanism(self.layout)
        how = experts.How(name, expert, routing, mechanism, self.group_with)
        with jax.named_scope(name):
            places = routed.places(self.layout, self.mesh, weights, name)
            router = jax.tree.map(
                lambda a: checkpoint_name(
                    self._constrain(jnp.asarray(a), ((),) * a.ndim), keeping.GATHERED
                ),
                (router_DE, bias_E),
            )
            rested = {
                key: self._constrain(
                    jnp.asarray(array).astype(self.compute), places.rests.get(key, ())
                )
                for key, array in weights.items()
            }
            h_BTD = self._constrain(h_BTD.astype(self.compute), (*places.tokens, ()))
            result, aux = experts.run(how, places, h_BTD, router, rested)
            spec = self.layout.spec("acts", "BTD", name)
            return checkpoint_name(self._constrain(result, spec), name), aux

    def stack(
        self, segments: Sequence[Segment], x_BTD: Array, per_batch: Batch, cache=None
    ) -> tuple[Array, Any, Any]:
        """`Verbs.stack`: scanned, unrolled or in stages, rematerialised by name."""
        if self.stack_with is not None:
            return *self.stack_with(segments, x_BTD, per_batch), None
        if stages.stages_of(self.layout) > 1 and cache is None:
            return *stages.through_stages(self, segments, x_BTD, per_batch), None
        scan = functools.partial(stack.scan, together=self.together)
        run = stack.unroll if self.unroll else scan
        policy = keeping.with_residual(self.remat, self.residual)
        caches = [None] * len(segments) if cache is None else cache
        auxes, after = [], []
        for segment, segment_cache in zip(segments, caches, strict=True):
            block = functools.partial(segment.block, self)
            elsewhere, once_in = self.gathers(segment.params), self.layout.once_in
            inputs_alone = self.remat == "full" and not (elsewhere and once_in)
            if inputs_alone and cache is None and not self.unroll:
                x_BTD, aux, left = stack.scan_inputs(
                    block, segment, x_BTD, per_batch, self._rest, self.together
                )
            else:
                group = once_in if elsewhere else 1
                turn = max(self.together, group)
                loops = not (self.barred or self.unroll) and stack.loops(segment, turn)
                how = keeping.remats_of(policy, group, looped=loops)
                inputs = (segment, x_BTD, per_batch, segment_cache)
                x_BTD, aux, left = run(block, *inputs, remats=how)
            auxes.append(aux)
            after.append(left)
        return x_BTD, auxes, None if cache is None else after

    def cross_entropy(
        self, hidden_BTD: Array, head_DV: Array, targets_BT: Array, *, name: str
    ) -> TokenLoss:
        """`Verbs.cross_entropy`: by vocabulary shard, and by chunk of that."""
        spec = self.layout.spec("acts", "BTV", name)
        tokens = hidden_BTD.shape[0] * hidden_BTD.shape[1] // self.layout.over(spec[:2])
        vocabulary = head_DV.shape[1] // self.layout.over(spec[2:])
        fits = tokens * vocabulary <= self.loss_elements
        chunk = cross_entropy.columns(tokens, vocabulary, self.loss_elements)
        if self.loss_chunks:
            chunk = -(-vocabulary // self.loss_chunks)
        with jax.named_scope(name):
            shards = cross_entropy.Shards()
            hidden_BTD = scaled(hidden_BTD.astype(self.compute), self.head_scale)
            head_DV = head_DV.astype(self.compute)
            if self.mesh is not None:
                shards = self._loss_shards(spec)
                hidden_BTD = self._constrain(hidden_BTD, (*spec[:2], ()))
                head_DV = self._brought(
                    head_DV, (shards.width, spec[2]), (shards.reduced, spec[2])
                )
            keep = self.loss_chunks is None and (
                fits or tokens * vocabulary <= cross_entropy.KEEP_ELEMENTS
            )
            return cross_entropy.token_loss(
                hidden_BTD, head_DV, targets_BT, chunk, shards, keep=keep
            )

    def _loss_shards(self, spec: Spec) -> cross_entropy.Shards:
        """Where the loss finds its head, and leaves the head's gradient."""
        batch, length, vocabulary = spec

        def of_width(kind: str) -> tuple[str, ...]:
            rests = self.layout.spec(kind, "DV", "head_DV")[0]
            return tuple(axis for axis in rests if axis not in vocabulary)

        reduced = of_width(self.gradients)
        return cross_entropy.Shards(
            self.mesh,
            (batch, length),
            vocabulary,
            of_width("params"),
            tuple(axis for axis in reduced if axis in (*batch, *length)),
            self.reduce,
        )


def scaled(array: Array, factor: float) -> Array:
    """The array times a number; the array itself where that is 1."""
    return array if factor == 1.0 else array * jnp.asarray(factor, array.dtype)
