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
from jax.sharding import Mesh, NamedSharding

from scaling_lab import dims
from scaling_lab.layouts.mesh import partition
from scaling_lab.layouts.tables import Layout, Spec
from scaling_lab.parallel import (
    attention,
    cross_entropy,
    equations,
    experts,
    stack,
    take,
)
from scaling_lab.parallel.verbs import Batch, Mask, Segment, TokenLoss

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Placement:
    """Binds the verbs of `parallel.verbs.Verbs` to one layout on one mesh.

    Attributes:
      layout: the tables.
      mesh: the layout's mesh; ``None`` places nothing (one device).
      compute: dtype of arithmetic; weights are cast where they are used, before they
        are gathered, and softmax, norms and the loss stay in float32.
      remat: what the backward pass keeps, as `parallel.stack.remat` reads it.
      unroll: layers written out instead of scanned.
      attend_with: the attention of one device.
      contract_with: the contraction of one device.
      loss_chunks: how many chunks of positions the loss is cut into, each made again
        in the backward pass; ``None`` decides.
      loss_elements: logits of one device at a time, where it decides.
    """

    layout: Layout
    mesh: Mesh | None = None
    compute: Any = jnp.float32
    remat: str = "none"
    unroll: bool = False
    attend_with: attention.Attend = attention.dense
    contract_with: equations.Contract = equations.contract
    loss_chunks: int | None = None
    loss_elements: int = cross_entropy.KEEP_ELEMENTS

    def einsum(
        self, equation: str, *operands: Any, name: str, bias: Any = None
    ) -> Array:
        """`Verbs.einsum`: operands moved to where the contraction wants them."""
        operands = tuple(jnp.asarray(operand) for operand in operands)
        equations.check(equation, operands, name)
        terms, output = equations.parse(equation)
        out_spec = self.layout.spec("acts", output, name)
        with jax.named_scope(name):
            moved = tuple(
                self._operand(operand, term, (terms, output, out_spec), name)
                for operand, term in zip(operands, terms, strict=True)
            )
            result = self._contract(equation, moved, out_spec)
            if bias is not None:
                result = result + self._bias(jnp.asarray(bias), output, name)
            return checkpoint_name(result, name)

    def take(
        self, table: Any, indices_BT: Array, *, name: str, dims: str = "VD"
    ) -> Array:
        """`Verbs.take`: a plain gather, or one per shard of the table's rows."""
        out_spec = self.layout.spec("acts", "BT" + dims[1:], name)
        with jax.named_scope(name):
            table = self._use(jnp.asarray(table), dims, name)
            if self.mesh is None:
                return checkpoint_name(take.rows(table, indices_BT), name)
            row_axes = self.layout.spec("acts", dims, name)[0]
            found = take.sharded_rows(
                table, indices_BT, self.mesh, row_axes or None, out_spec[0] or None
            )
            return checkpoint_name(self._constrain(found, out_spec), name)

    def attend(
        self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, *, name: str
    ) -> Array:
        """`Verbs.attend`: each device its own rows and heads."""
        batch, _, heads, _ = self.layout.spec("acts", "BTNH", name)
        kv_heads = self.layout.spec("acts", "BSKH", name)[2]
        with jax.named_scope(name):
            if self.mesh is None or not (batch or heads):
                result = self.attend_with(q_BTNH, k_BSKH, v_BSKH, mask)
            else:
                result = attention.by_heads(
                    self.attend_with,
                    (q_BTNH, k_BSKH, v_BSKH),
                    mask,
                    self.mesh,
                    batch or None,
                    (heads or None, kv_heads or None),
                )
            return checkpoint_name(result, name)

    def experts(
        self,
        h_BTD: Array,
        router_DE: Any,
        weights: Mapping[str, Any],
        expert: Callable[..., Array],
        *,
        top_k: int,
        name: str,
    ) -> Array:
        """`Verbs.experts`: every expert on every token, weighted by its gate."""
        with jax.named_scope(name):
            router_DE = self._use(jnp.asarray(router_DE), "DE", f"{name}/router")
            used = {
                key: self._use(jnp.asarray(array), dims.letters(key), name)
                for key, array in weights.items()
            }
            gates_BTE = experts.gates(h_BTD, router_DE, top_k)
            result = experts.dense(h_BTD, gates_BTE, used, expert)
            spec = self.layout.spec("acts", "BTD", name)
            return checkpoint_name(self._constrain(result, spec), name)

    def stack(
        self, segments: Sequence[Segment], x_BTD: Array, per_batch: Batch, cache=None
    ) -> tuple[Array, Any, Any]:
        """`Verbs.stack`: scanned or unrolled, rematerialised by name."""
        run = stack.unroll if self.unroll else stack.scan
        caches = [None] * len(segments) if cache is None else cache
        auxes, after = [], []
        for segment, segment_cache in zip(segments, caches, strict=True):
            block = stack.remat(
                functools.partial(segment.block, self),
                self.remat,
                regather=self.mesh is not None and self._gathers(segment.params),
            )
            x_BTD, aux, left = run(block, segment, x_BTD, per_batch, segment_cache)
            auxes.append(aux)
            after.append(left)
        return x_BTD, auxes, None if cache is None else after

    def cross_entropy(
        self, hidden_BTD: Array, head_DV: Array, targets_BT: Array, *, name: str
    ) -> TokenLoss:
        """`Verbs.cross_entropy`: by vocabulary shard and by chunk of positions."""
        batch, length, _ = hidden_BTD.shape
        spec = self.layout.spec("acts", "BTV", name)
        rows = batch // self.layout.over(spec[:1])
        columns = head_DV.shape[1] // self.layout.over(spec[2:])
        n = self.loss_chunks or cross_entropy.chunks(
            rows * length, length, columns, self.loss_elements
        )
        recompute = self.loss_chunks is not None
        with jax.named_scope(name):
            head_DV = self._use(head_DV, "DV", name)
            hidden_BTD = hidden_BTD.astype(self.compute)
            if self.mesh is None:
                return cross_entropy.token_loss(
                    hidden_BTD, head_DV, targets_BT, n, recompute
                )
            # Positions whole again before they are cut into chunks.
            hidden_BTD = self._constrain(hidden_BTD, (spec[0], (), ()))
            return cross_entropy.sharded_token_loss(
                (hidden_BTD, head_DV, targets_BT),
                n,
                recompute,
                self.mesh,
                (spec[0] or None, spec[2] or None),
            )

    # How an array gets to where it is wanted.

    def sharding(self, kind: str, letters: str, name: str = "") -> NamedSharding | None:
        """Where an array rests by one of the four tables; ``None`` without a mesh."""
        if self.mesh is None:
            return None
        return NamedSharding(
            self.mesh, partition(self.layout.spec(kind, letters, name))
        )

    def constrain(self, array: Array, kind: str, letters: str, name: str = "") -> Array:
        """The array, resting where a table says."""
        return self._constrain(array, self.layout.spec(kind, letters, name))

    def _constrain(self, array: Array, spec: Spec) -> Array:
        if self.mesh is None:
            return array
        return jax.lax.with_sharding_constraint(
            array, NamedSharding(self.mesh, partition(spec))
        )

    def _contract(self, equation: str, operands: tuple[Array, ...], out: Spec) -> Array:
        return self._constrain(self.contract_with(equation, operands), out)

    def _operand(self, operand: Array, term: str, around, name: str) -> Array:
        """A weight goes where `acts` says; an activation where the output will need it.

        The dims it keeps follow the output, so a dim the output does not divide is
        gathered before the contraction and not after; the dims summed over stay where
        they are, and then no kept dim may sit on their axis.
        """
        if "B" not in term:
            return self._use(operand, term, name)
        terms, output, out_spec = around
        own = dict(zip(term, self.layout.spec("acts", term, name), strict=True))
        summed = equations.contracted(terms, output) & set(term)
        busy = {axis for letter in summed for axis in own[letter]}
        kept = dict(zip(output, out_spec, strict=True))
        spec = tuple(
            own[letter]
            if letter in summed
            else tuple(axis for axis in kept[letter] if axis not in busy)
            for letter in term
        )
        return self._constrain(operand.astype(self.compute), spec)

    def _bias(self, bias: Array, output: str, name: str) -> Array:
        letters = output[-bias.ndim :]
        bias = self._use(bias, letters, f"{name}_bias")
        return bias[(None,) * (len(output) - bias.ndim)]

    def _use(self, weight: Array, letters: str, name: str) -> Array:
        """A stored weight, cast, then brought to where it is used."""
        weight = weight.astype(self.compute)
        if self.mesh is None:
            return weight
        stored = f"{name.rpartition('/')[2]}_{letters}"
        used = self.sharding("acts", letters, name)
        weight = _gather(weight, used, self.sharding("grads", letters, stored))
        if self._gathers({stored: weight}):
            weight = checkpoint_name(weight, stack.GATHERED)
        return weight

    def _gathers(self, params: Mapping[str, Any]) -> bool:
        """Whether any of these weights rests elsewhere than it is used."""
        if self.layout.gather == "step":
            return False
        return any(
            self.layout.spec("params", letters, name)
            != self.layout.spec("acts", letters)
            for name in params
            for letters in [dims.letters(name)]
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight: Array, used: NamedSharding, reduced: NamedSharding) -> Array:
    """The weight where it is used; its gradient straight to where it is reduced.

    Left alone, the transpose would put the gradient where the weight was used, whole
    on every device, before dividing it.
    """
    del reduced
    return jax.lax.with_sharding_constraint(weight, used)


def _gather_forward(weight, used, reduced):
    return _gather(weight, used, reduced), None


def _gather_backward(used, reduced, _, cotangent):
    del used
    return (jax.lax.with_sharding_constraint(cotangent, reduced),)


_gather.defvjp(_gather_forward, _gather_backward)
