"""What mechanisms move: keys round a context, rows to experts, results to stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp

from scaling_lab.config import RunConfig
from scaling_lab.cost.ledger import Entry
from scaling_lab.layouts import (
    Layout,
    Spec,
    alternates,
    passes,
    routed,
    stages_of,
    virtual_of,
)
from scaling_lab.parallel import experts, ulysses


@dataclasses.dataclass(frozen=True)
class Implied:
    """A collective that a layout implies: bytes of one device in one step."""

    kind: str
    axes: tuple[str, ...]
    bytes: int
    why: str


def of_experts(config: RunConfig, layout: Layout, entry: Entry) -> Iterator[Implied]:
    """Rows on their way to experts and back, and what is summed over parts of F.

    Going backwards each makes the way again in the other direction.
    """
    word = entry.name.rpartition("/")[2]
    leaves, returns = word == "sent", entry.output == "BTD"
    if not (leaves or returns):
        return
    tokens = _numbers(config, layout, entry, "BTD")
    tokens *= jnp.dtype(config.arithmetic).itemsize
    tokens //= layout.over(layout.spec("acts", "BT"))
    bound = routed.mechanism(layout)
    axes = layout.spec("acts", "E")[0]
    way = "to its experts" if leaves else "and back"
    often = forwards(layout, entry)
    if axes and bound == "ring_of_experts":
        size = tokens * layout.over((axes,))
        first, then = ("all-gather", "reduce-scatter")[:: 1 if leaves else -1]
        yield Implied(first, axes, often * size, f"every token {way}")
        yield Implied(then, axes, size, "its gradient")
    elif axes and bound not in experts.WHOLE:
        rows = entry.top_k * (
            config.model.routing.capacity if bound == "capacity" else 1
        )
        sent = round((often + 1) * tokens * rows)
        yield Implied("all-to-all", axes, sent, f"rows {way}")
    if bound == "capacity":
        yield from _places(config, layout, tokens, (leaves, often))
    inner = layout.spec("acts", "F")[0]
    if inner and returns:
        yield Implied("all-reduce", inner, often * tokens, "partial sums over F")
        yield Implied("all-reduce", inner, tokens, "gradient of BTD")


def _places(
    config: RunConfig, layout: Layout, tokens: int, way: tuple[bool, int]
) -> Iterator[Implied]:
    """Places of a divided row: each device fills what it has tokens for, holds a part.

    Args:
      tokens: bytes of one device's. way: whether to experts, and how often forward.
    """
    length = layout.spec("acts", "BT")[1]
    if length:
        routing = config.model.routing
        rows = tokens * layout.over((length,)) * routing.capacity * routing.top_k
        leaves, often = way
        first, then = ("reduce-scatter", "all-gather")[:: 1 if leaves else -1]
        yield Implied(first, length, round(often * rows), "places of experts")
        yield Implied(then, length, round(rows), "their gradient")


def shared_heads(config: RunConfig, layout: Layout, entry: Entry) -> Iterator[Implied]:
    """Key-value heads held whole where query heads are divided: their gradients."""
    batch, _, queries, _ = layout.spec("acts", "BTNH", entry.name)
    keys = layout.spec("acts", "BSKH", entry.name)[2]
    axes = tuple(axis for axis in queries if axis not in keys)
    if axes:
        size = 2 * _numbers(config, layout, entry, "BSKH")
        size *= jnp.dtype(config.arithmetic).itemsize
        size //= layout.over((batch, keys))
        yield Implied("all-reduce", axes, size, "gradient of keys and values")


def divided_keys(config: RunConfig, layout: Layout, entry: Entry) -> Iterator[Implied]:
    """Keys and values of a divided sequence, gathered or going round, and back."""
    batch, length, _, _ = layout.spec("acts", "BTNH", entry.name)
    if not length:
        return
    if layout.mechanism("attend", "gather") == "ulysses":
        yield from _exchanged(config, layout, entry)
        return
    heads = layout.spec("acts", "BSKH", entry.name)[2]
    numbers = 2 * _numbers(config, layout, entry, "BSKH")
    numbers //= layout.over((batch, heads))
    itemsize = jnp.dtype(config.arithmetic).itemsize
    often = forwards(layout, entry)
    if layout.mechanism("attend", "gather") == "gather":
        gathered = often * numbers * itemsize
        yield Implied("all-gather", length, gathered, "keys and values")
        yield Implied("reduce-scatter", length, numbers * itemsize, "their gradient")
        return
    part = numbers // layout.over((length,))
    rounds = layout.over((length,)) - 1
    there = (often + 1) * rounds * part * itemsize  # again going backwards
    yield Implied("collective-permute", length, there, "keys and values go round")
    back = (rounds + 1) * part * 4
    yield Implied("collective-permute", length, back, "their gradient, in float32")


def _exchanged(config: RunConfig, layout: Layout, entry: Entry) -> Iterator[Implied]:
    """Positions for heads and back; a key-value head to all whose queries share it."""
    batch, length, heads, _ = layout.spec("acts", "BTNH", entry.name)
    queries = entry.sizes["N"] // layout.over((heads,))
    keys = max(1, entry.sizes["K"] // layout.over((heads,)))
    sent = ulysses.heads_sent(queries, keys, layout.over((length,)))
    numbers = entry.elements("BTH") // layout.over((batch, length)) * entry.times
    size = numbers * jnp.dtype(config.arithmetic).itemsize
    often = times(config, layout, entry.times > 1)
    often *= forwards(layout, entry) + 1  # and their gradients back
    for heads, what in ((queries, "queries and results"), (sent, "keys and values")):
        there = round(2 * heads * size * often)
        yield Implied("all-to-all", length, there, f"{what}: positions for heads")


def to_stages(
    layout: Layout, letters: str, stored: Spec, size: int
) -> Iterator[Implied]:
    """Layers that rest by number are where they are used; by width they must move."""
    if "stage" not in stored[0]:
        size //= layout.over(stored)
        yield Implied("all-to-all", ("stage",), 2 * size, "to its stage, and back")


def handed_on(config: RunConfig, layout: Layout, entry: Entry) -> Iterator[Implied]:
    """What stages hand on at every tick, and the ends that all of them share."""
    stages = stages_of(layout)
    size = entry.elements("BTD") * jnp.dtype(config.arithmetic).itemsize
    size //= layout.over(layout.spec("acts", "BTD"))
    virtual = virtual_of(layout)
    ticks = config.accumulate * virtual + stages - 1
    yield Implied(
        "collective-permute", ("stage",), 2 * ticks * size, "handed on, and back"
    )
    whole = (config.accumulate + ticks) * size
    yield Implied("all-reduce", ("stage",), whole, "from the last stage; to the first")


def _numbers(config: RunConfig, layout: Layout, entry: Entry, letters: str) -> int:
    """Of an array that a verb has, in all its layers and microbatches of a step."""
    often = times(config, layout, entry.times > 1)
    return round(entry.elements(letters) * entry.times * often)


def times(config: RunConfig, layout: Layout, layers: bool) -> float:
    """How often a step does what is said of a microbatch, on one device."""
    return passes(layout, config.accumulate) if layers else config.accumulate


def forwards(layout: Layout, entry: Entry) -> int:
    """How often a layer goes forward: once more where stages alternate."""
    return 1 + (alternates(layout) and entry.times > 1)


def times_later(config: RunConfig, layout: Layout) -> float:
    """The same of a gradient that stages make when all have one to make."""
    return config.accumulate / stages_of(layout)
