"""Whether a layout can be, decided before anything is traced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from scaling_lab import dims
from scaling_lab.layouts.tables import IllegalLayout, Layout, Table

#: The activations that every family has, whatever its verbs are called.
ACTIVATIONS = ("BTD", "BTF", "BTNH", "BSKH", "BTV")


def fit_kv_heads(layout: Layout, sizes: Mapping[str, int]) -> Layout:
    """The layout with K undivided where the model has fewer KV heads than the axis.

    The one exception to "a dim divides its axis": with ``K < axis`` and the axis a
    multiple of K, key-value heads are stored whole and `attend` gives each group of
    query heads its own.
    """
    heads = sizes.get("K")
    if heads is None:
        return layout
    parts = layout.over(layout.spec("acts", "K"))
    if parts <= heads or parts % heads:
        return layout
    tables: dict[str, Table | None] = {
        kind: None if table is None else {**table, "K": None}
        for kind in ("params", "acts", "grads", "optimizer")
        for table in [getattr(layout, kind)]
    }
    return dataclasses.replace(layout, **tables)


def check(
    layout: Layout,
    sizes: Mapping[str, int],
    params: Mapping[str, Sequence[int]],
    devices: int | None = None,
) -> None:
    """Raises unless every array divides over its axes and every axis divides something.

    Args:
      layout: after `fit_kv_heads`.
      sizes: letter -> size of the activations' dims; B is per microbatch.
      params: parameter path -> shape.
      devices: how many there are; ``None`` skips the count.

    Raises:
      IllegalLayout: with the dim, the sizes and the nearest legal choices.
    """
    if devices is not None and layout.devices != devices:
        raise IllegalLayout(_wrong_count(layout, devices))
    for kind in ("params", "grads", "optimizer"):
        for path, shape in params.items():
            name = path.rpartition("/")[2]
            letters = dims.check(name, shape)
            spec = layout.spec(kind, letters, name)
            for letter, size, axes in zip(letters, shape, spec, strict=True):
                _divides(layout, f"{kind} of {path}", letter, size, axes)
    for signature in (*ACTIVATIONS, *_weights_in_use(params)):
        layout.spec("acts", signature)  # raises where two dims share an axis
    _halves(layout, sizes)  # of positions this says more than that they do not divide
    for letter, size in sizes.items():
        _divides(layout, "acts", letter, size, layout.spec("acts", letter)[0])
    for signature, override in layout.acts.items():
        if isinstance(override, Mapping) and set(signature) <= set(dims.ALPHABET):
            spec = layout.spec("acts", signature)
            for letter, axes in zip(signature, spec, strict=True):
                if letter in sizes:
                    _divides(layout, f"acts {signature}", letter, sizes[letter], axes)
    _whole_heads(layout, sizes)
    _whole_groups(layout, params)
    _every_axis_used(layout, sizes, params)


def _whole_groups(layout: Layout, params: Mapping[str, Sequence[int]]) -> None:
    """Where one layer in several keeps what it gathered, they are groups of as many."""
    count = layout.once_in
    if count < 2:
        return
    if layout.mesh.get("stage", 1) > 1:
        raise IllegalLayout(
            f"layout {layout.name!r}: a stage gathers before its first microbatch what "
            f"it keeps, which is of all its layers and not of one in {count}; write "
            "+gather_once, or leave axis stage out"
        )
    names = [(path.rpartition("/")[2], shape) for path, shape in params.items()]
    depths = {shape[0] for name, shape in names if dims.letters(name)[0] == "L"}
    if all(depth % count == 0 for depth in depths):
        return
    near = divisors(math.gcd(*depths))[1:]
    near.sort(key=lambda n: abs(n - count))
    numbers, runs = (", ".join(map(str, sorted(n))) for n in (near[:2], depths))
    raise IllegalLayout(
        f"layout {layout.name!r}: +gather_once={count} keeps what one layer in {count} "
        f"gathered, and runs of {runs} like layers do not divide into groups of "
        f"{count}; "
        + (f"nearest number: {numbers}; or " if near else "")
        + "write +gather_once: all layers keep theirs"
    )


def _halves(layout: Layout, sizes: Mapping[str, int]) -> None:
    """Every shard of a row holds one chunk from its front and one from its back."""
    axes = layout.spec("acts", "BT")[1]
    length, chunks = sizes.get("T", 0), 2 * layout.over((axes,))
    if not axes or length % chunks == 0:
        return
    lower = length // chunks * chunks
    near = ", ".join(str(n) for n in (lower, lower + chunks) if n)
    raise IllegalLayout(
        f"layout {layout.name!r}: {' × '.join(axes)}={chunks // 2} cuts a row into "
        f"{chunks} chunks, two for each shard, and length={length} does not divide "
        f"into them; nearest length: {near}"
    )


def _whole_heads(layout: Layout, sizes: Mapping[str, int]) -> None:
    """Where positions are exchanged for heads, every device gets as many whole ones."""
    _, length, heads, _ = layout.spec("acts", "BTNH")
    if not length or layout.mechanism("attend", "gather") != "ulysses":
        return
    count, parts = sizes.get("N", 0), layout.over((length, heads))
    if count % parts == 0:
        return
    inner = layout.over((heads,))
    along = " × ".join(f"{axis}={layout.mesh[axis]}" for axis in (*length, *heads))
    legal = [n for n in divisors(count // inner) if n > 1]
    legal.sort(key=lambda n: abs(n - parts // inner))
    near = ", ".join(map(str, sorted(legal[:2])))
    raise IllegalLayout(
        f"layout {layout.name!r}: +ulysses divides N={count} ({dims.ALPHABET['N']}) "
        f"over {along} while attention runs, and {parts} devices cannot have as many "
        "each; "
        + (f"nearest {' × '.join(length)} that can: {near}; or " if near else "")
        + "leave +ulysses out: keys are then gathered"
    )


def _weights_in_use(params: Mapping[str, Sequence[int]]) -> set[str]:
    names = (path.rpartition("/")[2] for path in params)
    return {dims.letters(name).removeprefix("L") for name in names}


def divisors(number: int) -> list[int]:
    """Every divisor, rising."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _divides(
    layout: Layout, what: str, letter: str, size: int, axes: tuple[str, ...]
) -> None:
    parts = layout.over((axes,))
    if size % parts == 0:
        return
    along = " × ".join(f"{axis}={layout.mesh[axis]}" for axis in axes)
    raise IllegalLayout(
        f"layout {layout.name!r}, {what}: dim {letter}={size} "
        f"({dims.ALPHABET[letter]}) does not divide over {along}; "
        f"{_nearest(letter, size, parts, axes)}"
    )


def _nearest(letter: str, size: int, parts: int, axes: tuple[str, ...]) -> str:
    """What would divide: other sizes of the axes, and for a batch other batches."""
    legal = divisors(size)
    below = [n for n in legal if n < parts][-2:]
    above = [n for n in legal if n > parts][:1]
    axis = axes[0] if len(axes) == 1 else " × ".join(axes)
    choices = f"nearest {axis} that divide it: {', '.join(map(str, below + above))}"
    if letter in "BT":
        lower, upper = size // parts * parts, -(-size // parts) * parts
        near = ", ".join(str(n) for n in (lower, upper) if n)
        word = "batch per microbatch" if letter == "B" else "length"
        return f"nearest {word}: {near}; {choices}"
    return f"{choices}; or leave {letter} out of the table"


def _wrong_count(layout: Layout, devices: int) -> str:
    shape = ",".join(f"{axis}={size}" for axis, size in layout.mesh.items())
    hint = f"use a layout of {devices} devices"
    if layout.devices > devices:
        hint += (
            f", or simulate {layout.devices} on the CPU with "
            f"--target cpu:{layout.devices}"
        )
    return (
        f"layout {layout.name!r} ({shape}) is a mesh of {layout.devices} devices "
        f"and the target has {devices}; {hint}"
    )


def _every_axis_used(
    layout: Layout, sizes: Mapping[str, int], params: Mapping[str, Sequence[int]]
) -> None:
    used: set[str] = set()
    names = [path.rpartition("/")[2] for path in params]
    for kind in ("params", "optimizer"):
        for name in names:
            used |= set().union(*layout.spec(kind, dims.letters(name), name))
    for letter in sizes:
        used |= set(layout.spec("acts", letter)[0])
    for signature in ACTIVATIONS:
        used |= set().union(*layout.spec("acts", signature))
    for axis, size in layout.mesh.items():
        if size > 1 and axis not in used:
            raise IllegalLayout(
                f"layout {layout.name!r}: axis {axis}={size} divides nothing of this "
                f"model, so its devices would all do the same work; give them to data, "
                "fsdp or tensor"
            )
