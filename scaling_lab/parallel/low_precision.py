"""Products in 8 bits: operands become codes times scales where they are multiplied.

A scale belongs to a row or column of an operand: it is the largest magnitude over the
dims that are summed, of the whole array and not of one device's part, so that every
layout multiplies the same codes. Scales are taken anew at every product, nothing is
remembered from the step before.

* ``float8``: e4m3 forward, e5m2 for gradients, in all three products (Micikevicius et
  al. 2022, "FP8 formats for deep learning", section 3). Scales are powers of two,
  which no rounding touches.
* ``int8``: forward, and backward to the activations. A weight's gradient, which sums
  over all tokens, keeps 16 bits (Wortsman et al. 2023, "Stable and low-precision
  training", section 2.2, SwitchBack).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling_lab.parallel import equations

Array = jax.Array
#: A product of codes on one device: ``(equation, codes, dtype of the result)``.
Unit = Callable[[str, tuple[Array, Array], Any], Array]


class Code(NamedTuple):
    """A number format of 8 bits and its largest number."""

    dtype: str
    largest: float


INT8 = Code("int8", 127.0)
E4M3 = Code("float8_e4m3fn", 448.0)
E5M2 = Code("float8_e5m2", 57344.0)


class Recipe(NamedTuple):
    """Formats of the two operands in each product; ``None`` leaves them as they are.

    Attributes:
      forward: activation and weight. backward: gradient and weight. weight: activation
        and gradient.
    """

    forward: tuple[Code, Code]
    backward: tuple[Code, Code]
    weight: tuple[Code, Code] | None


#: By the name of a run's precision.
RECIPES: dict[str, Recipe] = {
    "int8": Recipe((INT8, INT8), (INT8, INT8), None),
    "float8": Recipe((E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2)),
}


def native(equation: str, codes: tuple[Array, Array], dtype: Any) -> Array:
    """The product by the unit that the chip has for these codes."""
    (left, right), output = equations.parse(equation)
    if output[0] not in left:
        left, right, codes = right, left, (codes[1], codes[0])
    both = [letter for letter in left if letter in right]
    batch = [letter for letter in both if letter in output]
    summed = [letter for letter in both if letter not in output]
    dims = (_places(left, right, summed), _places(left, right, batch))
    whole = dtype if jnp.issubdtype(codes[0].dtype, jnp.floating) else jnp.int32
    found = jax.lax.dot_general(*codes, dims, preferred_element_type=whole)
    free = [letter for letter in left + right if letter not in both]
    order = [[*batch, *free].index(letter) for letter in output]
    return jnp.transpose(found, order)


def _places(left: str, right: str, letters: list[str]) -> Any:
    return tuple([term.index(letter) for letter in letters] for term in (left, right))


def widened(equation: str, codes: tuple[Array, Array], dtype: Any) -> Array:
    """The same product of the same codes, where there is no such unit: in float32."""
    del dtype
    wide = (codes[0].astype(jnp.float32), codes[1].astype(jnp.float32))
    return equations.contract(equation, wide)


class Coded(NamedTuple):
    """`equations.Products` by codes.

    Attributes:
      recipe: the formats. unit: multiplies codes.
    """

    recipe: Recipe
    unit: Unit = native

    def forward(self, equation: str, operands: tuple[Array, ...]) -> Array:
        """An activation times a weight."""
        return self._product(equation, operands, self.recipe.forward)

    def backward(self, equation: str, operands: tuple[Array, ...]) -> Array:
        """A gradient times a weight."""
        return self._product(equation, operands, self.recipe.backward)

    def weigh(
        self, equation: str, operands: tuple[Array, ...], dtype: Any
    ) -> equations.Weighing:
        """An activation times a gradient; scales are of all sequences together."""
        formats = self.recipe.weight
        if formats is None:
            return equations.Plain(equations.contract).weigh(equation, operands, dtype)
        named = _coded(equation, operands, formats)
        letters = tuple(term for term, _ in named)

        def multiply(*parts: Array) -> Array:
            own = tuple(zip(letters, parts, strict=True))
            return _scaled(equation, own, self.unit, dtype)

        return named, multiply

    def _product(
        self,
        equation: str,
        operands: tuple[Array, ...],
        formats: tuple[Code, Code],
    ) -> Array:
        named = _coded(equation, operands, formats)
        return _scaled(equation, named, self.unit, operands[0].dtype)


def applies(equation: str) -> bool:
    """Whether an equation is a product of an activation and a weight, as one dot."""
    terms, output = equations.parse(equation)
    if len(terms) != 2 or "B" in terms[1]:
        return False
    summed = equations.contracted(terms, output)
    return bool(summed) and all(summed <= set(term) for term in terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def contract(products: Coded, equation: str, x: Array, weight: Array) -> Array:
    """The contraction by `products`; the result has the dtype of ``x``."""
    return products.forward(equation, (x, weight))


def _forward(products, equation, x, weight):
    return products.forward(equation, (x, weight)), (x, weight)


def _backward(products, equation, residuals, gradient):
    x, weight = residuals
    (left, right), output = equations.parse(equation)
    dx = products.backward(f"{output},{right}->{left}", (gradient, weight))
    named, multiply = products.weigh(
        f"{left},{output}->{right}", (x, gradient), weight.dtype
    )
    return dx, multiply(*(array for _, array in named))


contract.defvjp(_forward, _backward)


def _coded(
    equation: str, operands: tuple[Array, ...], formats: tuple[Code, Code]
) -> tuple[equations.Named, ...]:
    """Codes and scale of the left operand, then of the right one."""
    terms, output = equations.parse(equation)
    named: list[equations.Named] = []
    for term, operand, code in zip(terms, operands, formats, strict=True):
        summed = tuple(i for i, letter in enumerate(term) if letter not in output)
        kept = "".join(letter for letter in term if letter in output)
        codes, scale = encode(operand, summed, code)
        named += [(term, codes), (kept, jnp.squeeze(scale, summed))]
    return tuple(named)


def encode(array: Array, summed: tuple[int, ...], code: Code) -> tuple[Array, Array]:
    """``(codes, scale)``, whose product is the array; the scale, float32, keeps dims.

    A row of zeros has scale 1. What is no number makes its whole row none.
    """
    most = jnp.max(jnp.abs(array), axis=summed, keepdims=True).astype(jnp.float32)
    scale = jnp.where(most == 0, 1.0, most / code.largest)
    if code is INT8:
        codes = jnp.clip(jnp.round(array / scale), -code.largest, code.largest)
    else:
        scale = _power_of_two(scale)
        codes = array / scale
    return codes.astype(code.dtype), scale


def _power_of_two(scale: Array) -> Array:
    """The power of two that is no less; so codes never overflow."""
    bits = jax.lax.bitcast_convert_type(jnp.maximum(scale, 2.0**-100), jnp.int32)
    up = (bits + 0x7FFFFF) & 0x7F800000
    return jax.lax.bitcast_convert_type(up, jnp.float32)


def _scaled(
    equation: str, named: tuple[equations.Named, ...], unit: Unit, dtype: Any
) -> Array:
    """The product of codes, times both scales."""
    (_, left), (rows, row_scale), (_, right), (columns, column_scale) = named
    output = equations.parse(equation)[1]
    found = unit(equation, (left, right), dtype).astype(jnp.float32)
    scales = (row_scale, column_scale)
    found = equations.contract(f"{output},{rows},{columns}->{output}", (found, *scales))
    return found.astype(dtype)
