"""Where everything lives, from the ledger and the tables: `traffic` says what moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab import dims, optimizers
from scaling_lab.config import RunConfig, validate
from scaling_lab.cost import traffic
from scaling_lab.cost.ledger import record
from scaling_lab.cost.mechanisms import Implied
from scaling_lab.layouts import Layout, Spec, stages_of


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
    """Explains a config without tracing on devices or allocating.

    Raises:
      IllegalLayout: the layout cannot be.
    """
    validate(config)
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
            tuple(traffic.of_parameter(config, layout, path, leaf.size)),
        )
        yield Row(
            "gradient",
            path,
            leaf.shape,
            placement_text(letters, reduced),
            size // layout.over(reduced),
            tuple(traffic.of_gradient(config, layout, path, leaf.size)),
        )


def _optimizer_state(config: RunConfig, layout: Layout) -> Iterator[Row]:
    optimizer = optimizers.make(config.optimizer, config.steps)
    state = jax.eval_shape(optimizer.init, config.abstract_params)
    letters = optimizers.state_dims(state, config.abstract_params)
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, leaf), own in zip(flat, jax.tree.leaves(letters), strict=True):
        name = str(getattr(path[-1], "key", "")) if path else ""
        spec = layout.spec("optimizer", own, name, leaf.shape if own else ())
        yield Row(
            "optimizer",
            "/".join(filter(None, dims.keys(path))),
            leaf.shape,
            placement_text(own, spec) if own else "whole",
            leaf.size * leaf.dtype.itemsize // layout.over(spec),
        )


def _activations(config: RunConfig, layout: Layout) -> Iterator[Row]:
    itemsize = jnp.dtype(config.arithmetic).itemsize
    for entry in record(config):
        spec = layout.spec("acts", entry.output, entry.name)
        elements = entry.elements(entry.output)
        held = elements * itemsize * entry.times // layout.over(spec)
        if entry.times > 1:
            held //= stages_of(layout)
        yield Row(
            "activation",
            entry.name,
            tuple(entry.sizes[letter] for letter in entry.output),
            placement_text(entry.output, spec),
            held,
            tuple(traffic.of_verb(config, layout, entry, held)),
        )
