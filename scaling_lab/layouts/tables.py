"""A layout is data: which dim lives on which mesh axis, in four tables.

Storing and computing differ, and ZeRO is nothing else: `params` says where a weight
rests, `grads` where its gradient is reduced to, `optimizer` where its optimizer state
rests, and `acts` where anything lives in use, a weight included.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scaling_lab.dims import AXES

Axes = str | tuple[str, ...] | None
#: Letter -> axes; or a signature ("BTD") or name -> a table that overrides for it.
Table = Mapping[str, Any]
#: For every dim of an array the mesh axes it is divided over.
Spec = tuple[tuple[str, ...], ...]
#: What `Layout.gather` may be.
_GATHER = re.compile(r"layer|step(/([2-9]|[1-9]\d+))?")


#: Dims of a factored moment that rests as what it is of does -> those of that.
FACTORED = {"ED": "EDF"}


class IllegalLayout(ValueError):
    """A layout that cannot be, with the dim, the sizes and the nearest that can."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything lives on a mesh.

    Attributes:
      mesh: axis -> size; kept in the order of `dims.AXES`, slowest links first.
      params: where a weight rests.
      acts: where anything lives in use.
      grads: where a gradient is reduced to; default `params`.
      optimizer: where optimizer state rests; default `params`.
      gather: ``layer`` gathers a stored weight where it is used and again in the
        backward pass; ``step`` keeps what it gathered, ``step/4`` that of every fourth
        layer. Of ``step`` a pipeline's stage gathers its weights before its first
        microbatch and holds them, as they rest, to the last; experts it gathers by
        layer all the same.
      bind: verb -> the mechanism that does it, where that is not the verb's first
        (`grammar.MECHANISMS`): ``{"attend": "ring"}``.
      name: what people call it; not part of its identity.
    """

    mesh: Mapping[str, int]
    params: Table = dataclasses.field(default_factory=dict)
    acts: Table = dataclasses.field(default_factory=dict)
    grads: Table | None = None
    optimizer: Table | None = None
    gather: str = "layer"
    bind: Mapping[str, str] | None = None
    name: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        unknown = [axis for axis in self.mesh if axis not in AXES]
        if unknown:
            raise IllegalLayout(
                f"layout {self.name!r}: unknown mesh axis {unknown[0]!r}; "
                f"axes are {', '.join(AXES)}"
            )
        for axis, size in self.mesh.items():
            if size < 1:
                raise IllegalLayout(
                    f"layout {self.name!r}: axis {axis}={size}; a size is at least 1"
                )
        ordered = {axis: self.mesh[axis] for axis in AXES if axis in self.mesh}
        object.__setattr__(self, "mesh", ordered)
        if not _GATHER.fullmatch(self.gather):
            raise IllegalLayout(
                f"layout {self.name!r}: gather={self.gather!r}; say 'layer' or 'step', "
                "or 'step/4' to keep what every fourth layer gathered"
            )

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        count = 1
        for size in self.mesh.values():
            count *= size
        return count

    @property
    def once_in(self) -> int:
        """Of how many layers one keeps what it gathered: 1 if all do, 0 if none."""
        if self.gather == "layer":
            return 0
        return int(self.gather.partition("/")[2] or 1)

    def mechanism(self, verb: str, default: str) -> str:
        """What the layout binds a verb to."""
        return (self.bind or {}).get(verb, default)

    def table(self, kind: str) -> Table:
        """The table `params`, `grads`, `optimizer` or `acts`, its default filled in."""
        own = getattr(self, kind)
        return self.params if own is None else own

    def spec(
        self, kind: str, letters: str, name: str = "", shape: Sequence[int] = ()
    ) -> Spec:
        """For every dim of an array its mesh axes, overrides applied, size 1 dropped.

        Args:
          kind: ``params``, ``grads``, ``optimizer`` or ``acts``.
          letters: the array's dims. name: the array's or the verb's name. Overrides
            for a stacked array are written without its ``L``. shape: the array's, if a
            dim of it may be another than its letter's: one that does not divide over
            its axes is whole.

        Raises:
          IllegalLayout: two dims on one axis.
        """
        table = self.table(kind)
        chosen = dict(table)
        own = letters.removeprefix("L")
        for key in (FACTORED.get(own, own), name.replace("_L", "_")):
            override = table.get(key)
            if isinstance(override, Mapping):
                chosen |= override
        spec = tuple(self._axes(chosen.get(letter)) for letter in letters)
        used: dict[str, str] = {}
        for letter, axes in zip(letters, spec, strict=True):
            for axis in axes:
                if axis in used:
                    raise IllegalLayout(
                        f"layout {self.name!r}, {kind} of {name or letters}: dims "
                        f"{used[axis]} and {letter} both on axis {axis}; override one "
                        f"of them, for example {{{letters!r}: {{{letter!r}: None}}}}"
                    )
                used[axis] = letter
        if not shape:
            return spec
        return tuple(
            () if size % self.over((axes,)) else axes
            for size, axes in zip(shape, spec, strict=True)
        )

    def over(self, spec: Spec) -> int:
        """Into how many parts a spec divides an array."""
        parts = 1
        for axes in spec:
            for axis in axes:
                parts *= self.mesh[axis]
        return parts

    def to_json(self) -> dict[str, Any]:
        """The layout as plain JSON; `from_json` reads it back."""
        data = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }
        return {key: value for key, value in data.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """The inverse of `to_json`."""
        return cls(**{key: _tuples(value) for key, value in data.items()})

    def __hash__(self) -> int:
        data = self.to_json()
        data.pop("name")
        return hash(json.dumps(data, sort_keys=True))

    def _axes(self, value: Axes) -> tuple[str, ...]:
        if value is None or isinstance(value, Mapping):
            return ()
        return tuple(axis for axis in listed(value) if self.mesh.get(axis, 1) > 1)


def listed(axes: Axes) -> tuple[str, ...]:
    """Axes as a table writes them: one, several, or none."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
