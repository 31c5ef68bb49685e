"""Where everything lives and what must cross the wires, from the ledger and the tables.

What is said here is implied by the layout; the compiled module says what the compiler
made of it. A collective that stands there and not here is one nobody asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab import dims, optimizers
from scaling_lab.config import RunConfig
from scaling_lab.cost.ledger import Entry, record
from scaling_lab.layouts import Layout, Spec
from scaling_lab.parallel import equations


@dataclasses.dataclass(frozen=True)
class Implied:
    """A collective that a layout implies: bytes of one device in one step."""

    kind: str
    axes: tuple[str, ...]
    bytes: int
    why: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One array: ``what`` is parameter, gradient, optimizer or activation.

    Attributes:
      placement: every dim with its axes, as ``L, D@fsdp, F@tensor``.
      bytes: of one device; of an activation, in all layers and one microbatch.
    """

    what: str
    name: str
    shape: tuple[int, ...]
    placement: str
    bytes: int
    collectives: tuple[Implied, ...] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Every array of a run, and sums over them."""

    layout: str
    rows: tuple[Row, ...]

    def bytes_by(self) -> dict[str, int]:
        """Bytes of one device by what it is."""
        total: dict[str, int] = {}
        for row in self.rows:
            total[row.what] = total.get(row.what, 0) + row.bytes
        return total

    def collectives(self) -> list[dict[str, Any]]:
        """Implied collectives merged by kind and axes, the heaviest first."""
        merged: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for row in self.rows:
            for item in row.collectives:
                entry = merged.setdefault((item.kind, item.axes), [0, 0])
                entry[0] += 1
                entry[1] += item.bytes
        ordered = sorted(merged.items(), key=lambda pair: -pair[1][1])
        return [
            {"kind": kind, "axes": list(axes), "count": count, "bytes": size}
            for (kind, axes), (count, size) in ordered
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "layout": self.layout,
            "bytes_per_device": self.bytes_by(),
            "collectives": self.collectives(),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def explain(config: RunConfig) -> Explanation:
    """Explains a validated config without tracing on devices or allocating."""
    layout = config.placed_layout
    rows = [
        *_parameters(config, layout),
        *_optimizer_state(config, layout),
        *_activations(config, layout),
    ]
    return Explanation(layout.name, tuple(rows))


def placement_text(letters: str, spec: Spec) -> str:
    """A spec for reading: ``L, D@fsdp, F@tensor``."""
    parts = [
        letter + ("@" + "×".join(axes) if axes else "")
        for letter, axes in zip(letters, spec, strict=True)
    ]
    return ", ".join(parts) or "scalar"


def _parameters(config: RunConfig, layout: Layout) -> Iterator[Row]:
    for path, leaf in dims.leaves(config.abstract_params).items():
        name = path.rpartition("/")[2]
        letters = dims.letters(name)
        stored = layout.spec("params", letters, name)
        reduced = layout.spec("grads", letters, name)
        size = leaf.size * leaf.dtype.itemsize
        yield Row(
            "parameter",
            path,
            leaf.shape,
            placement_text(letters, stored),
            size // layout.over(stored),
            tuple(_gathers(config, layout, name, leaf.size)),
        )
        yield Row(
            "gradient",
            path,
            leaf.shape,
            placement_text(letters, reduced),
            size // layout.over(reduced),
            tuple(_reductions(config, layout, name, size)),
        )


def _gathers(
    config: RunConfig, layout: Layout, name: str, elements: int
) -> Iterator[Implied]:
    """A stored weight to where it is used, and an updated one to where it is stored."""
    letters = dims.letters(name)
    stored = layout.spec("params", letters, name)
    used = layout.spec("acts", letters.removeprefix("L"), name)
    used = ((),) + used if letters.startswith("L") else used
    apart = _missing(stored, used)
    if apart:
        itemsize = jnp.dtype(config.precision).itemsize
        again = layout.gather == "layer" and letters.startswith("L")
        passes = config.accumulate * (2 if again else 1)
        size = elements * itemsize // layout.over(used)
        why = "gathered where it is used" + (", twice" if again else "")
        yield Implied("all-gather", apart, passes * size, why)
    updated = layout.spec("optimizer", letters, name)
    apart = _missing(updated, stored)
    if apart:
        size = elements * 4 // layout.over(stored)
        yield Implied("all-gather", apart, size, "updated where its state rests")


def _reductions(
    config: RunConfig, layout: Layout, name: str, size: int
) -> Iterator[Implied]:
    """A gradient summed over the axes that its batch and positions are divided over."""
    letters = dims.letters(name)
    batch = set(layout.spec("acts", "B")[0])
    own = layout.spec("acts", letters.removeprefix("L"), name)
    partial = tuple(axis for axis in layout.mesh if axis in batch) if batch else ()
    held = size // layout.over(own)
    reduced = {axis for axes in layout.spec("grads", letters, name) for axis in axes}
    scattered = tuple(axis for axis in partial if axis in reduced)
    summed = tuple(axis for axis in partial if axis not in reduced)
    if scattered:
        yield Implied(
            "reduce-scatter", scattered, held * config.accumulate, "summed and divided"
        )
        held //= layout.over((scattered,))
    if summed:
        yield Implied("all-reduce", summed, held * config.accumulate, "summed")


def _optimizer_state(config: RunConfig, layout: Layout) -> Iterator[Row]:
    optimizer = optimizers.make(config.optimizer, config.steps)
    state = jax.eval_shape(optimizer.init, config.abstract_params)
    letters = optimizers.state_dims(state, config.abstract_params)
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, leaf), own in zip(flat, jax.tree.leaves(letters), strict=True):
        name = str(getattr(path[-1], "key", "")) if path else ""
        spec = layout.spec("optimizer", own, name)
        keys = [str(getattr(k, "key", getattr(k, "name", ""))) for k in path]
        yield Row(
            "optimizer",
            "/".join(key for key in keys if key),
            leaf.shape,
            placement_text(own, spec) if own else "whole",
            leaf.size * leaf.dtype.itemsize // layout.over(spec),
        )


def _activations(config: RunConfig, layout: Layout) -> Iterator[Row]:
    itemsize = jnp.dtype(config.precision).itemsize
    for entry in record(config):
        spec = layout.spec("acts", entry.output, entry.name)
        elements = entry.elements(entry.output)
        held = elements * itemsize * entry.times // layout.over(spec)
        yield Row(
            "activation",
            entry.name,
            tuple(entry.sizes[letter] for letter in entry.output),
            placement_text(entry.output, spec),
            held,
            tuple(_moves(config, layout, entry, held)),
        )


def _moves(
    config: RunConfig, layout: Layout, entry: Entry, held: int
) -> Iterator[Implied]:
    """Partial sums of a contraction, forward; and what its operands were gathered from.

    Each has its mirror in the backward pass: a sum's gradient is gathered or copied, a
    gather's is summed and divided.
    """
    if entry.verb == "take":
        rows = layout.spec("acts", entry.weights[0], entry.name)[0]
        if rows:
            yield Implied("all-reduce", rows, held, "each device holds some rows")
        return
    if entry.verb == "attend":
        return
    terms, output = equations.parse(entry.equation)
    spec = layout.spec("acts", output, entry.name)
    placed = {axis for axes in spec for axis in axes}
    summed = equations.contracted(terms, output)
    own = dict(zip(terms[0], layout.spec("acts", terms[0], entry.name), strict=True))
    steps = config.accumulate
    for letter in sorted(summed):
        axes = own.get(letter, ())
        if not axes:
            continue
        divided = set(axes) <= placed
        kind = "reduce-scatter" if divided else "all-reduce"
        size = held * layout.over((axes,)) if divided else held
        yield Implied(kind, axes, size * steps, f"partial sums over {letter}")
        if divided:
            yield Implied("all-gather", axes, size * steps, "its gradient")
    yield from _operand_gather(config, layout, entry, (summed, own, placed))


def _operand_gather(config: RunConfig, layout: Layout, entry: Entry, around: Any):
    """The activation operand, gathered before; its gradient summed after."""
    summed, own, placed = around
    term, output = equations.parse(entry.equation)
    itemsize = jnp.dtype(config.precision).itemsize
    spec = dict(zip(output, layout.spec("acts", output, entry.name), strict=True))
    size = entry.elements(term[0]) * itemsize * entry.times
    size //= layout.over(tuple(spec.get(letter, ()) for letter in term[0]))
    size *= config.accumulate
    gone = {
        axis
        for letter, axes in own.items()
        if letter not in summed
        for axis in axes
        if axis not in spec.get(letter, ())
    }
    axes = tuple(axis for axis in layout.mesh if axis in gone)
    if axes and not any(set(own[letter]) & gone for letter in summed):
        yield Implied("all-gather", axes, size, f"{term[0]} for {entry.name}")
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
