"""Einsum equations read as dims, and the contraction itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from scaling_lab import dims as alphabet

Array = jax.Array
Contract = Callable[[str, tuple[Array, ...]], Array]
#: An array and its letters.
Named = tuple[str, Array]
#: What is multiplied, each with its letters, and what multiplies it.
Weighing = tuple[tuple[Named, ...], Callable[..., Array]]


def parse(equation: str) -> tuple[tuple[str, ...], str]:
    """``"BTD,DF->BTF" -> (("BTD", "DF"), "BTF")``.

    Raises:
      ValueError: no arrow, a letter outside the alphabet, or an output letter that no
        operand has.
    """
    left, arrow, output = equation.partition("->")
    operands = tuple(left.split(","))
    if not arrow:
        raise ValueError(f"equation {equation!r} has no '->'; write the output's dims")
    for term in (*operands, output):
        alphabet.letters(f"x_{term}")
    lost = set(output) - set(left)
    if lost:
        raise ValueError(f"equation {equation!r}: no operand has dim(s) {sorted(lost)}")
    return operands, output


def contracted(operands: tuple[str, ...], output: str) -> set[str]:
    """The letters summed over."""
    return set("".join(operands)) - set(output)


def check(equation: str, operands: tuple[Any, ...], name: str) -> dict[str, int]:
    """The size of every letter, after checking that operands agree.

    Raises:
      ValueError: wrong number of operands or dims, or one letter with two sizes.
    """
    terms, _ = parse(equation)
    if len(terms) != len(operands):
        raise ValueError(
            f"{name}: {equation!r} takes {len(terms)} operands, got {len(operands)}"
        )
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        if len(term) != len(operand.shape):
            raise ValueError(
                f"{name}: {term!r} in {equation!r} has {len(term)} dims, "
                f"its operand has shape {tuple(operand.shape)}"
            )
        for letter, size in zip(term, operand.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{name}: dim {letter} is {sizes[letter]} and {size} in "
                    f"{equation!r}"
                )
    return sizes


def contract(
    equation: str, operands: tuple[Array, ...], out_sharding=None, dtype: Any = None
) -> Array:
    """The einsum in the operands' dtype; float32 means float32 on every backend.

    Args:
      dtype: of the result, where it is not the operands'.
    """
    terms, output = parse(equation)
    if not contracted(terms, output):
        return _multiply(terms, output, operands)
    exact = operands[0].dtype == jnp.float32
    return jnp.einsum(
        equation,
        *operands,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        out_sharding=out_sharding,
        preferred_element_type=dtype,
    )


class Products(Protocol):
    """How a weight's contraction is multiplied, forward and backward."""

    def forward(self, equation: str, operands: tuple[Array, ...]) -> Array:
        """An activation times a weight."""
        ...

    def backward(self, equation: str, operands: tuple[Array, ...]) -> Array:
        """A gradient times a weight."""
        ...

    def weigh(self, equation: str, operands: tuple[Array, ...], dtype: Any) -> Weighing:
        """An activation times a gradient as `dtype`, in two parts.

        Returns:
          arrays made of the whole operands; and what multiplies them, on every device
          its own part, to be summed.
        """
        ...


class Plain(NamedTuple):
    """`Products` in the operands' dtype.

    Attributes:
      with_weight: the contraction of one device, where a weight is a factor.
    """

    with_weight: Contract

    def forward(self, equation: str, operands: tuple[Array, ...]) -> Array:
        """An activation times a weight."""
        return self.with_weight(equation, operands)

    backward = forward

    def weigh(self, equation: str, operands: tuple[Array, ...], dtype: Any) -> Weighing:
        """An activation times a gradient: as they are, the one whose dim comes first in
        the product before the other."""
        terms, output = parse(equation)
        named = tuple(zip(terms, operands, strict=True))
        if output[0] not in terms[0]:
            named = named[::-1]
            equation = f"{terms[1]},{terms[0]}->{output}"
        wider = None if dtype == operands[0].dtype else dtype
        return named, lambda *parts: contract(equation, parts, dtype=wider)


def contract_narrow(equation: str, operands: tuple[Array, ...]) -> Array:
    """`contract`, with a weight's gradient made from its narrower side.

    The product of two tall matrices wants one of them transposed. XLA:CPU copies the
    left one, so the narrower goes there and the small result is turned instead.
    """
    terms, output = parse(equation)
    if len(terms) != 2 or "B" in terms[1] or not contracted(terms, output):
        return contract(equation, operands)
    return _narrow(*operands, equation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: Array, weight: Array, equation: str) -> Array:
    return contract(equation, (x, weight))


def _narrow_forward(x, weight, equation):
    return contract(equation, (x, weight)), (x, weight)


def _narrow_backward(equation, residuals, gradient):
    x, weight = residuals
    (left, right), output = parse(equation)
    dx = contract(f"{output},{right}->{left}", (gradient, weight))
    read = "".join(letter for letter in right if letter in left)
    written = "".join(letter for letter in right if letter in output)
    if x.size <= gradient.size or read + written != right:
        return dx, contract(f"{left},{output}->{right}", (x, gradient))
    turned = contract(f"{output},{left}->{written}{read}", (gradient, x))
    # Without the barrier XLA folds the transpose back into the product.
    turned = jax.lax.optimization_barrier(turned)
    order = [(written + read).index(letter) for letter in right]
    return dx, jnp.transpose(turned, order)


_narrow.defvjp(_narrow_forward, _narrow_backward)


def _multiply(
    terms: tuple[str, ...], output: str, operands: tuple[Array, ...]
) -> Array:
    """Nothing is summed: a product of broadcast arrays, which fuses, not a dot."""
    product = None
    for term, operand in zip(terms, operands, strict=True):
        order = [term.index(letter) for letter in output if letter in term]
        aligned = jnp.transpose(operand, order) if order != sorted(order) else operand
        missing = [i for i, letter in enumerate(output) if letter not in term]
        aligned = jnp.expand_dims(aligned, missing)
        product = aligned if product is None else product * aligned
    assert product is not None
    return product


def wide_product(equation: str, left: Array, right: Array) -> Array:
    """A product with float32 sums; of float32 arrays no digit is given up."""
    exact = left.dtype == jnp.float32
    return jnp.einsum(
        equation,
        left,
        right,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )
