"""The verbs on Explicit mesh axes, where shardings are part of an array's type.

Held to the same equivalence tests as `Placement`. What differs is how an array is
moved (`reshard`) and that a contraction must be told where its result goes.
"""

from __future__ import annotations

import jax
from jax.sharding import NamedSharding

from scaling_lab.layouts.mesh import partition
from scaling_lab.layouts.placement import Placement
from scaling_lab.layouts.tables import Spec
from scaling_lab.parallel import equations

Array = jax.Array


class ExplicitPlacement(Placement):
    """`Placement` for a mesh whose axes are all `AxisType.Explicit`."""

    gradients = "params"  # a gradient's sharding is its weight's, by type

    def _constrain(self, array: Array, spec: Spec) -> Array:
        if self.mesh is None:
            return array
        return jax.sharding.reshard(array, NamedSharding(self.mesh, partition(spec)))

    def _contract(
        self, equation: str, operands: tuple[Array, ...], out: Spec, name: str
    ) -> Array:
        del name
        if self.mesh is None:
            return equations.contract(equation, operands)
        sharding = NamedSharding(self.mesh, partition(out))
        terms, output = equations.parse(equation)
        if not equations.contracted(terms, output):
            return self._constrain(equations.contract(equation, operands), out)
        return equations.contract(equation, operands, out_sharding=sharding)

    def _rested(self, weight: Array, rests: Spec) -> Array:
        del rests  # its type says so
        return weight

    def _brought(self, weight: Array, used: Spec, reduced: Spec) -> Array:
        # Here a gradient's sharding is its weight's by type; the train step reduces it
        # to the `grads` table, so nothing is decided twice.
        del reduced
        return self._constrain(weight, used)
