"""A placement that only writes down what was said: every verb, its shapes, its mask.

Run under `jax.eval_shape`, so a 405B model costs no memory. A layer of a stack is
looked at once and counted as often as it stands.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab import dims, models
from scaling_lab.config import RunConfig
from scaling_lab.parallel import equations
from scaling_lab.parallel.masks import Batch, Mask
from scaling_lab.parallel.verbs import Routing, Segment, TokenLoss

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Entry:
    """One verb as it was said.

    Attributes:
      verb: ``einsum``, ``take``, ``attend``, ``experts`` or ``cross_entropy``.
      name: the verb's name. equation: in dims, ``"BTD,DF->BTF"``.
      sizes: letter -> size, of one microbatch.
      times: how often in one forward pass: the layers of its stack.
      density: of the attention mask. top_k: experts that each token's C rows go to.
      ends: last of its block. Its result is the next block's input, which is kept.
    """

    verb: str
    name: str
    equation: str
    sizes: Mapping[str, int]
    times: int = 1
    density: float = 1.0
    top_k: int = 0
    ends: bool = False

    @property
    def output(self) -> str:
        """Dims of the result."""
        return self.equation.rpartition("->")[2]

    @property
    def weights(self) -> tuple[str, ...]:
        """Dims of each operand that is a weight."""
        terms = self.equation.partition("->")[0].split(",")
        return tuple(term for term in terms if "B" not in term)

    def elements(self, letters: str) -> int:
        """How many numbers an array of these dims holds."""
        count = 1
        for letter in letters:
            count *= self.sizes[letter]
        return count

    @property
    def flops(self) -> float:
        """Forward multiply-adds times two, in all layers; elementwise work is free."""
        if self.verb == "attend":
            pairs = self.elements("BTS") * self.density
            return self.times * 4 * pairs * self.elements("NH")
        if self.verb == "take":
            return 0.0
        if self.verb == "experts":  # a row meets one expert's weights
            letters = set(self.equation) & set(self.sizes) - {"E"}
            rows = self.times * 2.0 * self.elements("".join(sorted(letters)))
            return rows if self.weights else 0.0
        terms, output = equations.parse(self.equation)
        if not equations.contracted(terms, output):
            return 0.0
        return self.times * 2.0 * self.elements("".join(sorted(set("".join(terms)))))


class Ledger:
    """The six verbs, written down. Implements `parallel.verbs.Verbs`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._times = 1

    def einsum(
        self, equation: str, *operands: Any, name: str, bias: Any = None
    ) -> Array:
        """Writes the contraction down; a bias is free."""
        operands = tuple(jnp.asarray(operand) for operand in operands)
        sizes = equations.check(equation, operands, name)
        self._write("einsum", name, equation, sizes)
        output = equation.rpartition("->")[2]
        shape = tuple(sizes[letter] for letter in output)
        return jnp.zeros(shape, operands[0].dtype)

    def take(
        self, table: Any, indices_BT: Array, *, name: str, dims: str = "VD"
    ) -> Array:
        """Writes the lookup down."""
        table = jnp.asarray(table)
        sizes = {**dict(zip("BT", indices_BT.shape, strict=True))}
        # A table of positions has rows called T, as the indices are: rows do not count.
        rest = dict(zip(dims[1:], table.shape[1:], strict=True))
        self._write("take", name, f"{dims},BT->BT{dims[1:]}", {**rest, **sizes})
        return jnp.zeros((*indices_BT.shape, *table.shape[1:]), table.dtype)

    def attend(
        self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, *, name: str
    ) -> Array:
        """Writes attention down with its mask's density."""
        sizes = dict(zip("BTNH", q_BTNH.shape, strict=True))
        sizes |= dict(zip("SK", k_BSKH.shape[1:3], strict=True))
        self._write(
            "attend",
            name,
            "BTNH,BSKH,BSKH->BTNH",
            sizes,
            density=mask.density(),
        )
        return jnp.zeros_like(q_BTNH)

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
        """Writes down the router, each row's products with its expert, and the rest.

        C counts a token's choices. What is computed is what routing asks for: places
        that stay empty are not counted.
        """
        sizes = dict(zip("BTD", h_BTD.shape, strict=True))
        sizes |= {"E": jnp.asarray(router_DE).shape[1], "C": routing.top_k}
        self._write("einsum", f"{name}/router", "BTD,DE->BTE", sizes)
        more = {"top_k": routing.top_k}
        self._write("experts", f"{name}/sent", "BTD,BTC->BTCD", sizes, **more)

        def product(x_CD: Array, key: str) -> Array:
            _, read, written = dims.letters(key)
            shape = jnp.asarray(weights[key]).shape
            own = sizes | dict(zip(dims.letters(key), shape, strict=True))
            equation = f"BTC{read},E{read}{written}->BTC{written}"
            self._write("experts", f"{name}/{dims.stem(key)}", equation, own, **more)
            return jnp.zeros((*x_CD.shape[:-1], shape[2]), x_CD.dtype)

        expert(product, h_BTD.reshape(-1, sizes["D"]))
        self._write("experts", name, "BTCD,BTC->BTD", sizes, **more)
        return jnp.zeros_like(h_BTD), {}

    def stack(
        self, segments: Sequence[Segment], x_BTD: Array, per_batch: Batch, cache=None
    ) -> tuple[Array, Any, Any]:
        """Looks at one layer of each segment and counts it as often as it stands."""
        for segment in segments:
            depth = len(jax.tree.leaves(segment.params)[0])
            layer = {
                dims.unstacked(name): jnp.zeros(array.shape[1:], array.dtype)
                for name, array in segment.params.items()
            }
            self._times *= depth
            x_BTD, _, _ = segment.block(self, layer, x_BTD, per_batch, None)
            self._times //= depth
            self.entries[-1] = dataclasses.replace(self.entries[-1], ends=True)
        return x_BTD, [], None

    def cross_entropy(
        self, hidden_BTD: Array, head_DV: Array, targets_BT: Array, *, name: str
    ) -> TokenLoss:
        """Writes the logits down."""
        sizes = dict(zip("BTD", hidden_BTD.shape, strict=True))
        sizes["V"] = head_DV.shape[1]
        self._write("cross_entropy", name, "BTD,DV->BTV", sizes)
        zero_BT = jnp.zeros(targets_BT.shape, jnp.float32)
        return TokenLoss(zero_BT, zero_BT)

    def _write(self, verb: str, name: str, equation: str, sizes: Any, **more: Any):
        self.entries.append(
            Entry(verb, name, equation, dict(sizes), self._times, **more)
        )


@functools.lru_cache(64)
def record(config: RunConfig) -> tuple[Entry, ...]:
    """What one forward pass of one microbatch says."""
    family = models.family_of(config.model)
    ledger = Ledger()
    sizes = config.dim_sizes
    tokens = jax.ShapeDtypeStruct((sizes["B"], sizes["T"]), jnp.int32)
    batch = {
        key: tokens
        for key in ("tokens_BT", "targets_BT", "positions_BT", "segments_BT")
    }

    def forward(params: Any, batch: Any) -> Any:
        output = family.hidden(config.model, params, batch, ledger)
        head_DV = family.head(config.model, params)
        told = [(output.hidden_BTD, batch["targets_BT"], "head")]
        more = models.further(config.model, params, batch, ledger, output)
        if more is not None:
            told.append((more[0].hidden_BTD, more[1], "further/head"))
        return [
            ledger.cross_entropy(hidden_BTD, head_DV, targets_BT, name=name)
            for hidden_BTD, targets_BT, name in told
        ]

    jax.eval_shape(forward, config.abstract_params, batch)
    return tuple(ledger.entries)
