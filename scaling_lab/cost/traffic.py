"""What must cross the wires: the collectives that a layout implies.

What is said here is implied by the tables; the compiled module says what the compiler
made of it. A collective that stands there and not here is one nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from scaling_lab import dims
from scaling_lab.config import RunConfig
from scaling_lab.cost import mechanisms
from scaling_lab.cost.ledger import Entry, record
from scaling_lab.cost.mechanisms import Implied
from scaling_lab.layouts import (
    Layout,
    Spec,
    alternates,
    gathers_by_hand,
    independent,
    makes_later,
    stages_of,
    virtual_of,
)
from scaling_lab.layouts.moves import column_axes
from scaling_lab.parallel import equations
from scaling_lab.parallel.pipeline import REPLICAS


def of_parameter(
    config: RunConfig, layout: Layout, path: str, elements: int
) -> Iterator[Implied]:
    """A stored weight to where it is used, and an updated one to where it is stored."""
    name = path.rpartition("/")[2]
    letters = dims.letters(name)
    stored = layout.spec("params", letters, name)
    used = layout.spec("acts", letters.removeprefix("L"), name)
    used = ((),) + used if letters.startswith("L") else used
    apart = _missing(stored, used)
    if letters.startswith("L") and "stage" in apart:
        resting = jnp.dtype(config.parameters).itemsize
        yield from mechanisms.to_stages(layout, letters, stored, elements * resting)
        apart = tuple(axis for axis in apart if axis != "stage")
    uses = _whole_uses(config, layout, name)
    if apart and uses:
        times, dtype, why = _gathers(config, layout, path, uses)
        size = elements * jnp.dtype(dtype).itemsize // layout.over(used)
        yield Implied("all-gather", apart, round(times * size), why)
    updated = layout.spec("optimizer", letters, name)
    apart = _missing(updated, stored)
    if apart:
        size = elements * jnp.dtype(config.parameters).itemsize // layout.over(stored)
        yield Implied("all-gather", apart, size, "updated where its state rests")


def _gathers(
    config: RunConfig, layout: Layout, path: str, uses: int
) -> tuple[float, str, str]:
    """How often a step gathers a weight that so many verbs use, as what, and why."""
    run, _, name = path.rpartition("/")
    letters = dims.letters(name)
    is_layer, staged = letters[0] == "L", stages_of(layout) > 1
    once_in = 0 if staged and gathers_by_hand(letters) else layout.once_in
    if is_layer and staged and once_in:
        # As it rests, since gradients of all ticks add up to it in that precision; a
        # TPU's compiler casts it before it moves.
        share = _share_of_layers(config.abstract_params[run], layout)
        return share, config.parameters, "gathered before a stage's first tick"
    again = is_layer and once_in != 1
    often = 2 + alternates(layout) - (1 / once_in if once_in else 0) if again else uses
    why = "gathered where it is used" + (f", {often:g} times" if again else "")
    return mechanisms.times(config, layout, is_layer) * often, config.arithmetic, why


def of_gradient(
    config: RunConfig, layout: Layout, path: str, elements: int
) -> Iterator[Implied]:
    """A gradient summed over the axes that its batch and positions are divided over."""
    run, _, name = path.rpartition("/")
    letters = dims.letters(name)
    one_layer = letters.removeprefix("L")
    apart = {axis for axes in layout.spec("acts", "BT") for axis in axes}
    if not _multiplied(config, name):
        # A norm's scale or a bias meets positions where they are, undivided or not.
        apart |= {
            axis for axes in layout.spec("acts", f"BT{one_layer}")[:2] for axis in axes
        }
    own = layout.spec("acts", one_layer, name)
    uses = _whole_uses(config, layout, name)
    if not uses:  # a device's columns meet everybody's sequences over their axes
        columns = _column_axes(config, layout, name)
        apart -= set(columns)
        own = ((), columns)
    # Of an expert its own rows come to it, over the axis that experts are divided over.
    apart -= {axis for axes in own for axis in axes}
    partial = tuple(axis for axis in layout.mesh if axis in apart)
    partial, copies = _of_copies(config, layout, run, partial)
    # It is reduced in the precision it was computed in, and widened where it rests.
    dtype = (contracted(config, name) and config.reduce) or config.arithmetic
    held = elements * jnp.dtype(dtype).itemsize // layout.over(own)
    often = mechanisms.times(config, layout, letters[0] == "L")
    if makes_later(layout) and letters[0] == "L" and "E" not in letters:
        if _multiplied(config, name):
            often = mechanisms.times_later(config, layout)
    held = round(held * max(uses, 1) * often)
    reduced = {axis for axes in layout.spec("grads", letters, name) for axis in axes}
    scattered = tuple(axis for axis in partial if axis in reduced)
    summed = tuple(axis for axis in partial if axis not in reduced)
    if scattered:
        yield Implied("reduce-scatter", scattered, held, "summed and divided")
        held //= layout.over((scattered,))
    if summed:
        yield Implied("all-reduce", summed, held, "summed")
    if copies:
        size = elements * jnp.dtype(config.parameters).itemsize
        size = round(size * _share_of_layers(config.abstract_params[run], layout))
        size //= layout.over(own) * layout.over((scattered,))
        yield Implied("all-reduce", copies, size, "of a stage's copies, once a step")


def _share_of_layers(layers: Any, layout: Layout) -> float:
    """Of a run of layers those a stage has room for; of uneven ones some are no more
    than room."""
    depth, chunks = len(next(iter(layers.values()))), virtual_of(layout)
    return chunks * math.ceil(depth / (stages_of(layout) * chunks)) / depth


def _of_copies(
    config: RunConfig, layout: Layout, run: str, partial: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Axes over which a microbatch's gradient is summed, and those whose turn is last.

    See `layouts.copies.copies_of`.

    Args:
      run: of layers, the parameter's own; "" where it is of none.
    """
    copies = stages_of(layout) > 1 and run and independent(layout)
    copies = copies and config.reduce is None and not makes_later(layout)
    if not copies or any("router" in name for name in config.abstract_params[run]):
        return partial, ()
    last = tuple(axis for axis in partial if axis == REPLICAS)
    return tuple(axis for axis in partial if axis != REPLICAS), last


def _whole_uses(config: RunConfig, layout: Layout, name: str) -> int:
    """How many verbs want a parameter whole: of a tied table the head is one more."""
    by_columns = bool(_column_axes(config, layout, name))
    stems = {
        dims.stem(path.rpartition("/")[2])
        for path in dims.leaves(config.abstract_params)
    }
    tied = dims.letters(name) == "VD" and "head" not in stems
    return 1 + tied - by_columns


def _column_axes(config: RunConfig, layout: Layout, name: str) -> tuple[str, ...]:
    """The axes of a table that is looked up in by columns."""
    letters, stem = dims.letters(name), dims.stem(name)
    for entry in record(config):
        if entry.verb == "take" and entry.name.rpartition("/")[2] == stem:
            return column_axes(layout, entry.name, letters, entry.sizes[letters[1]])
    return ()


def _multiplied(config: RunConfig, name: str) -> bool:
    """Whether a parameter is a matrix to the model: contracted, or looked up in."""
    stems = {
        entry.name.rpartition("/")[2]
        for entry in record(config)
        if entry.flops or entry.verb == "take"
    }
    return dims.stem(name) in stems


def contracted(config: RunConfig, name: str) -> bool:
    """Whether a parameter's gradient is a product that devices add their parts of."""
    return any(
        entry.name.rpartition("/")[2] == dims.stem(name)
        for entry in record(config)
        if entry.flops and entry.verb in ("einsum", "cross_entropy")
    )


def of_verb(
    config: RunConfig, layout: Layout, entry: Entry, held: int
) -> Iterator[Implied]:
    """Partial sums of a contraction, forward; and what its operands were gathered from.

    Each has its mirror in the backward pass: a sum's gradient is gathered or copied, a
    gather's is summed and divided.
    """
    if entry.ends and stages_of(layout) > 1:
        yield from mechanisms.handed_on(config, layout, entry)
    if entry.verb == "take":
        letters = entry.weights[0]
        rows = layout.spec("acts", letters, entry.name)[0]
        columns = column_axes(layout, entry.name, letters, entry.sizes[letters[1]])
        if columns:
            size = 2 * held * config.accumulate
            yield Implied("all-to-all", columns, size, "found, and its gradient")
        if rows:
            # Summed before its positions are divided.
            parts = layout.over(layout.spec("acts", entry.output, entry.name)[1:2])
            size = held * parts * config.accumulate
            yield Implied("all-reduce", rows, size, "each device holds some rows")
        return
    if entry.verb == "attend":
        yield from mechanisms.shared_heads(config, layout, entry)
        yield from mechanisms.divided_keys(config, layout, entry)
        return
    if entry.verb == "experts":
        yield from mechanisms.of_experts(config, layout, entry)
        return
    terms, output = equations.parse(entry.equation)
    spec = layout.spec("acts", output, entry.name)
    placed = {axis for axes in spec for axis in axes}
    summed = equations.contracted(terms, output)
    own = dict(zip(terms[0], layout.spec("acts", terms[0], entry.name), strict=True))
    steps = mechanisms.times(config, layout, entry.times > 1)
    for letter in sorted(summed):
        axes = own.get(letter, ())
        if not axes:
            continue
        divided = set(axes) <= placed
        kind = "reduce-scatter" if divided else "all-reduce"
        size = held * layout.over((axes,)) if divided else held
        size = round(size * steps)
        # What ends a block is the next one's input, which is kept.
        often = 1 if entry.ends else mechanisms.forwards(layout, entry)
        yield Implied(kind, axes, often * size, f"partial sums over {letter}")
        if divided:
            yield Implied("all-gather", axes, size, "its gradient")
    yield from _operand_gather(config, layout, entry, (summed, own, placed))


def _operand_gather(config: RunConfig, layout: Layout, entry: Entry, around: Any):
    """The activation operand, gathered before; its gradient summed after."""
    summed, own, placed = around
    term, output = equations.parse(entry.equation)
    itemsize = jnp.dtype(config.arithmetic).itemsize
    spec = dict(zip(output, layout.spec("acts", output, entry.name), strict=True))
    size = entry.elements(term[0]) * itemsize * entry.times
    size //= layout.over(tuple(spec.get(letter, ()) for letter in term[0]))
    size = round(size * mechanisms.times(config, layout, entry.times > 1))
    gone = {
        axis
        for letter, axes in own.items()
        if letter not in summed
        for axis in axes
        if axis not in spec.get(letter, ())
    }
    axes = tuple(axis for axis in layout.mesh if axis in gone)
    if axes and not any(set(own[letter]) & gone for letter in summed):
        often = mechanisms.forwards(layout, entry)
        yield Implied("all-gather", axes, often * size, f"{term[0]} for {entry.name}")
        yield Implied("reduce-scatter", axes, size, "its gradient")
    # A weight's dim that the output keeps divided makes the operand's gradient partial.
    lone = {
        axis
        for weight in entry.weights
        for letter in weight
        if letter in output and letter not in term[0]
        for axis in spec.get(letter, ())
    } - gone
    axes = tuple(axis for axis in layout.mesh if axis in lone)
    if axes:
        yield Implied("all-reduce", axes, size, f"gradient of {term[0]}")


def _missing(before: Spec, after: Spec) -> tuple[str, ...]:
    """Axes an array is divided over before and not after."""
    left = {axis for axes in after for axis in axes}
    return tuple(axis for axes in before for axis in axes if axis not in left)
