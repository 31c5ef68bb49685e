"""Communication hidden by hand: products in turns, and weights that come ahead.

Two ways that `overlap_by_hand` holds against what the compilers hide themselves. They
are bound to a placement here and by no layout: the table says why.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab import dims
from scaling_lab.layouts import Placement
from scaling_lab.layouts.mesh import partition
from scaling_lab.parallel import collective_matmul, equations, stack

Array = jax.Array


class Turning(Placement):
    """`Placement` whose tensor-parallel products hide what moves."""

    def _operand(self, operand: Array, term: str, around: Any, name: str) -> Array:
        terms, output, _ = around
        if "B" in term and self._turn(terms, output, name):
            own = self.layout.spec("acts", term, name)
            return self._constrain(operand.astype(self.compute), own)
        return super()._operand(operand, term, around, name)

    def _contract(self, equation: str, operands: Any, out: Any, name: str) -> Array:
        terms, output = equations.parse(equation)
        if turn := self._turn(terms, output, name):
            contract: Any = collective_matmul.contract
            return contract(equation, turn, *operands)
        return super()._contract(equation, operands, out, name)

    def _turn(
        self, terms: tuple[str, ...], output: str, name: str
    ) -> collective_matmul.Turn | None:
        """How a contraction goes round, if exactly one axis of its T comes or goes."""
        if len(terms) != 2 or "B" in terms[1] or not output.startswith("BT"):
            return None
        before, used, after = (
            self.layout.spec("acts", letters, name) for letters in (*terms, output)
        )
        moved = set(before[1]) ^ set(after[1])
        if len(moved) != 1 or not moved <= {axis for axes in used for axis in axes}:
            return None
        (axis,) = moved
        stored = f"{name.rpartition('/')[2]}_{terms[1]}"
        rests = self.layout.spec("grads", terms[1], stored)
        specs = tuple(partition(spec) for spec in (before, used, after))
        assert self.mesh is not None
        of_gpu = next(iter(self.mesh.devices.flat)).platform in ("gpu", "cuda")
        ways = 1 if of_gpu else 2
        return collective_matmul.Turn(
            self.mesh, axis, axis in before[1], specs, rests, ways
        )


# Weights that come ahead.


def ahead(place: Placement, together: int = 1) -> Any:
    """`Placement.stack_with`: a layer's weights come while the one before computes.

    What the backward pass keeps is the layers' inputs (remat full).

    Args:
      together: layers in one turn of the loop. Of one, the weights that came are copied
        to where the next turn looks for them; two have a place each.
    """

    def layers(segments: Any, x_BTD: Array, per_batch: Any) -> Any:
        (segment,) = segments
        block = functools.partial(segment.block, place)
        run: Any = functools.partial(_ahead, place, block, together)
        return run(stack.per_layer(segment.params), x_BTD, per_batch), []

    return layers


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ahead(place, block, together, stacked, x_BTD, per_batch):
    return _ahead_forward(place, block, together, stacked, x_BTD, per_batch)[0]


def _brought(place: Placement, stacked: Any, i: Any) -> dict[str, Array]:
    """Layer i's weights, cast and gathered as its products will want them."""
    found = {}
    for name, array in stacked.items():
        one = jax.lax.dynamic_index_in_dim(array, i, 0, keepdims=False)
        letters = dims.letters(name)
        if len(letters) > 1:
            one = place.constrain(one.astype(place.compute), "acts", letters)
        found[name] = one
    return found


def _ahead_forward(place, block, together, stacked, x_BTD, per_batch):
    depth = len(jax.tree.leaves(stacked)[0])

    def body(carry: Any, i: Array) -> Any:
        x_BTD, here = carry
        coming = _brought(place, stacked, jnp.minimum(i + 1, depth - 1))
        return (block(here, x_BTD, per_batch, None)[0], coming), x_BTD

    first = _brought(place, stacked, 0)
    (out_BTD, last), inputs = jax.lax.scan(
        body, (x_BTD, first), jnp.arange(depth), unroll=together
    )
    return out_BTD, (stacked, inputs, per_batch, last)


def _ahead_backward(place, block, together, residuals, d_BTD):
    stacked, inputs, per_batch, last = residuals
    depth = len(jax.tree.leaves(stacked)[0])

    def body(carry: Any, step: Any) -> Any:
        gradients, d_BTD, here = carry
        i, x_BTD = step
        coming = _brought(place, stacked, jnp.maximum(i - 1, 0))
        _, back = jax.vjp(lambda p, x: block(p, x, per_batch, None)[0], here, x_BTD)
        own, d_BTD = back(d_BTD)
        gradients = {
            name: place.constrain(
                jax.lax.dynamic_update_index_in_dim(
                    whole, own[name].astype(whole.dtype), i, 0
                ),
                "grads",
                f"L{dims.letters(name)}",
                name,
            )
            for name, whole in gradients.items()
        }
        return (gradients, d_BTD, coming), None

    carry = (jax.tree.map(jnp.zeros_like, stacked), d_BTD, last)
    steps = (jnp.arange(depth), inputs)
    (gradients, d_BTD, _), _ = jax.lax.scan(
        body, carry, steps, reverse=True, unroll=together
    )
    return gradients, d_BTD, None


_ahead.defvjp(_ahead_forward, _ahead_backward)
