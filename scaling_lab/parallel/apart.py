"""A layer's backward pass in two: first its input's gradient, later its weights'.

Another stage waits for the gradient of a layer's input, nobody for that of its weights
(Qi et al. 2023, section 2). So a contraction with a weight is done by `contract`, whose
backward pass makes the gradient of x alone, and says x and the gradient of its result
as if they were gradients too: of two arrays that nothing else depends on. From these
the weight's gradient is made when there is time.

What a layer does otherwise with its parameters (scales of norms, biases, experts) is
differentiated as always, with the input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling_lab.parallel import equations

Array = jax.Array
Product = Callable[[Array, Array], Array]
#: ``(equation, name, product, operands) -> result``, what `Placement.tap` is.
Tap = Callable[[str, str, Product, Sequence[Array]], Array]


class Contraction(NamedTuple):
    """A contraction of a layer whose weight's gradient is made later.

    Attributes:
      equation: of x and the weight. weight: its parameter's name.
      x: the verb whose x it shares; its own name where it is the first to have it.
      shapes: of x and of the result.
    """

    equation: str
    weight: str
    x: str
    shapes: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]


def contractions(
    layer: Callable[..., Any], params: Mapping[str, Any], *inputs: Any
) -> dict[str, Contraction]:
    """The contractions of a layer with its own parameters, by the verb's name.

    A parameter that is used in any other way as well is left out.

    Args:
      layer: ``(tap, params, *inputs)``; arguments may be shapes.
    """
    found: dict[str, Contraction] = {}
    taken: list[Array] = []  # held, so that no other array is taken for one of them

    def probe(params: Mapping[str, Array], *inputs: Any) -> Any:
        def tap(equation: str, name: str, product: Product, operands: Any) -> Array:
            own = [key for key, leaf in params.items() if leaf is operands[-1]]
            if len(operands) != 2 or not own or not summed(equation):
                return product(*operands)
            result = jax.eval_shape(product, *operands)
            taken.append(operands[0])
            shapes = (_shape(operands[0]), _shape(result))
            found[name] = Contraction(equation, own[0], f"{id(operands[0])}", shapes)
            return jnp.zeros(result.shape, result.dtype)  # and the weight goes unused

        return layer(tap, params, *inputs)

    jaxpr = jax.make_jaxpr(probe)(params, *inputs).jaxpr
    used = {id(var) for equation in jaxpr.eqns for var in equation.invars}
    first = jaxpr.invars[: len(params)]
    others = {k for k, v in zip(sorted(params), first, strict=True) if id(v) in used}
    firsts: dict[str, str] = {}
    return {
        name: one._replace(x=firsts.setdefault(one.x, name))
        for name, one in found.items()
        if one.weight not in others
    }


def summed(equation: str) -> bool:
    """Whether an equation sums over anything, as a product with a matrix does."""
    return bool(equations.contracted(*equations.parse(equation)))


def _shape(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def letters(found: Mapping[str, Contraction]) -> dict[str, str]:
    """What is kept of some contractions: the key of each array, and its dims."""
    kept = {}
    for name, one in found.items():
        (x, _), output = equations.parse(one.equation)
        if one.x == name:
            kept[f"{name} x"] = x
        kept[f"{name} dy"] = output
    return kept


def room(found: Mapping[str, Contraction], lead: tuple[int, ...]) -> dict[str, Array]:
    """Zeros that stand for what is kept, with more dims in front."""
    shapes = {f"{name} x": one.shapes[0] for name, one in found.items()}
    shapes |= {f"{name} dy": one.shapes[1] for name, one in found.items()}
    return {
        key: jnp.zeros((*lead, *shapes[key].shape), shapes[key].dtype)
        for key in letters(found)
    }


def tap_of(found: Mapping[str, Contraction], kept: Mapping[str, Array]) -> Tap:
    """A tap that says what is to be kept as the gradients of `kept`."""

    def tap(equation: str, name: str, product: Product, operands: Any) -> Array:
        del equation
        if name not in found:
            return product(*operands)
        own = {
            key: kept[f"{name} {key}"] for key in ("x", "dy") if f"{name} {key}" in kept
        }
        return contract(product, *operands, own)

    return tap


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(product: Product, x: Array, weight: Array, kept: Any) -> Array:
    """``product(x, weight)``; going backwards the weight's gradient is left out.

    Args:
      kept: ``x`` and ``dy``, or ``dy`` alone: what their "gradients" will be.
    """
    del kept
    return product(x, weight)


def _forward(product, x, weight, kept):
    return product(x, weight), (x, weight, {key: None for key in kept})


def _backward(product, residuals, dy):
    x, weight, kept = residuals
    _, back = jax.vjp(lambda x: product(x, weight), x)
    said = {key: {"x": x, "dy": dy}[key] for key in kept}
    return *back(dy), jnp.zeros_like(weight), said


contract.defvjp(_forward, _backward)


def gradients(
    found: Mapping[str, Contraction],
    einsum: Callable[..., Array],
    params: Mapping[str, Array],
    kept: Mapping[str, Array],
) -> dict[str, Array]:
    """Gradients of one layer's weights from what was kept.

    Args:
      einsum: the verb. params: of the layer; their values are not needed.
    """
    total: dict[str, Array] = {}
    for name, one in found.items():
        x = kept[f"{one.x} x"]

        def product(weight, x=x, name=name, equation=one.equation):
            return einsum(equation, x, weight, name=name)

        _, back = jax.vjp(product, params[one.weight])
        (own,) = back(kept[f"{name} dy"])
        total[one.weight] = total[one.weight] + own if one.weight in total else own
    return total


def weights(found: Mapping[str, Contraction]) -> set[str]:
    """Parameters whose gradients come later; all else has its gradient at once."""
    return {one.weight for one in found.values()}
