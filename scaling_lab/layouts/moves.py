"""How an array gets to where it is wanted: the ground that `Placement` stands on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding

from scaling_lab import dims
from scaling_lab.layouts.mesh import partition
from scaling_lab.layouts.tables import Layout, Spec
from scaling_lab.parallel import equations, keeping, low_precision, reduced, take

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Moves:
    """One layout on one mesh, and how arrays move on it.

    Attributes:
      layout: the tables.
      mesh: the layout's mesh; ``None`` places nothing (one device).
      compute: dtype of arithmetic; weights are cast where they are used, before they
        are gathered, and softmax, norms and the loss stay in float32.
      contract_with: the contraction of one device.
      reduce: dtype that gradients of weights are summed in; ``None`` is `compute`.
      low: how weights are multiplied in 8 bits; ``None`` where they are not.
    """

    layout: Layout
    mesh: Mesh | None = None
    compute: Any = jnp.float32
    contract_with: equations.Contract = equations.contract
    low: low_precision.Coded | None = None
    reduce: str | None = None
    #: The table that says where a gradient leaves the backward pass.
    gradients: ClassVar[str] = "grads"

    def sharding(
        self, kind: str, letters: str, name: str = "", shape: Sequence[int] = ()
    ) -> NamedSharding | None:
        """Where an array rests by one of the four tables; ``None`` without a mesh."""
        if self.mesh is None:
            return None
        return NamedSharding(
            self.mesh, partition(self.layout.spec(kind, letters, name, shape))
        )

    def constrain(self, array: Array, kind: str, letters: str, name: str = "") -> Array:
        """The array, resting where a table says."""
        return self._constrain(array, self.layout.spec(kind, letters, name))

    def _rest(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Stacked gradients, named without their L, where they leave the layers."""
        return {
            name: self.constrain(array, self.gradients, f"L{dims.letters(name)}", name)
            for name, array in gradients.items()
        }

    def _constrain(self, array: Array, spec: Spec) -> Array:
        if self.mesh is None:
            return array
        return jax.lax.with_sharding_constraint(
            array, NamedSharding(self.mesh, partition(spec))
        )

    def _contract(
        self, equation: str, operands: tuple[Array, ...], out: Spec, name: str
    ) -> Array:
        terms, output = equations.parse(equation)
        x, weight = (*terms, "")[:2]
        weighed = x.startswith("BT") and output.startswith("BT") and weight
        low = self.low if low_precision.applies(equation) else None
        if not (weighed and out[0] and equations.contracted(terms, output)):
            if low is not None:
                return self._constrain(
                    low_precision.contract(low, equation, *operands), out
                )
            return self._constrain(self.contract_with(equation, operands), out)
        used = self.layout.spec("acts", weight, name)
        stored = f"{name.rpartition('/')[2]}_{weight}"
        busy = {axis for axes in used for axis in axes}
        length = tuple(axis for axis in out[1] if axis not in busy)
        reduction = reduced.Reduction(
            self.mesh,
            (out[0], length),
            used,
            self.layout.spec("grads", weight, stored),
            self.reduce,
        )
        contract: Any = reduced.contract
        products = low or equations.Plain(self.contract_with)
        result = contract(products, equation, reduction, *operands)
        return self._constrain(result, out)

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

    def _use(
        self, weight: Array, letters: str, name: str, used: Spec | None = None
    ) -> Array:
        """A stored weight, cast, then brought to where it is used: as `acts` says."""
        weight = weight.astype(self.compute)
        if self.mesh is None:
            return weight
        stored = f"{name.rpartition('/')[2]}_{letters}"
        used = self.layout.spec("acts", letters, name) if used is None else used
        weight = self._rested(weight, self.layout.spec("params", letters, stored))
        weight = self._brought(weight, used, self.layout.spec("grads", letters, stored))
        if self.gathers({stored: weight}):
            weight = checkpoint_name(weight, keeping.GATHERED)
        return weight

    def _rested(self, weight: Array, rests: Spec) -> Array:
        """A cast weight, said to be where it rests: it is not gathered before."""
        assert self.mesh is not None
        return rested(weight, NamedSharding(self.mesh, partition(rests)))

    def _brought(self, weight: Array, used: Spec, reduced: Spec) -> Array:
        """A weight where it is used; its gradient straight to where it is reduced."""
        assert self.mesh is not None
        specs = (NamedSharding(self.mesh, partition(spec)) for spec in (used, reduced))
        return gather(weight, *specs)

    def gathers(self, params: Mapping[str, Any]) -> bool:
        """Whether any of these weights rests elsewhere than it is used."""
        return self.mesh is not None and any(
            self.layout.spec("params", letters, name)
            != self.layout.spec("acts", letters)
            for name in params
            for letters in [dims.letters(name)]
        )


def column_axes(
    layout: Layout, name: str, letters: str, columns: int
) -> tuple[str, ...]:
    """The axes of a table's columns where a lookup in each part is better than whole.

    Args:
      name: of the verb that looks up. letters: dims of the table, rows and columns.
      columns: how many it has in all.
    """
    stored = layout.spec("params", letters, f"{name.rpartition('/')[2]}_{letters}")
    used = layout.spec("acts", letters, name)
    batch, length = layout.spec("acts", "BT")
    rows, axes = (*stored, ())[:2]
    ordered = (*(a for a in batch if a in axes), *(a for a in length if a in axes))
    apart = not rows and not any(used) and axes == ordered
    wide = columns // layout.over(stored[1:]) >= take.NARROWEST
    return axes if apart and wide else ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def rested(weight: Array, where: NamedSharding) -> Array:
    """The weight, said to be where it rests; of its gradient nothing is said."""
    return jax.lax.with_sharding_constraint(weight, where)


def _rested_forward(weight, where):
    return rested(weight, where), None


def _rested_backward(where, _, cotangent):
    del where
    return (cotangent,)


rested.defvjp(_rested_forward, _rested_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(weight: Array, used: NamedSharding, reduced: NamedSharding) -> Array:
    """The weight where it is used; its gradient straight to where it is reduced.

    Left alone, the transpose would put the gradient where the weight was used, whole
    on every device, before dividing it.
    """
    del reduced
    return jax.lax.with_sharding_constraint(weight, used)


def _gather_forward(weight, used, reduced):
    return gather(weight, used, reduced), None


def _gather_backward(used, reduced, _, cotangent):
    del used
    return (jax.lax.with_sharding_constraint(cotangent, reduced),)


gather.defvjp(_gather_forward, _gather_backward)
