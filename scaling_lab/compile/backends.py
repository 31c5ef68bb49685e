"""Whose compiler speaks for a target, and what it takes to ask it.

A backend is a file of this folder: ``cpu``, ``gpu`` or ``tpu``. Each offers

* ``version()``: the compiler's name and version, or `NoCompiler`;
* ``environment(target)``: variables a process needs before JAX starts;
* ``devices(target)``: the target's devices, though none of them is here;
* ``out_of_memory(message)``: the figures of an out-of-memory verdict, or ``None``;
* ``refused_module(lowered, options)``: the module that verdict is about, or ``None``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from scaling_lab.hardware import Target

#: Compiler options as JAX takes them.
Options = dict[str, str | bool]


class NoCompiler(ValueError):
    """The target's compiler is not installed, or there is none."""


class Backend(Protocol):
    """What every backend's file offers."""

    def version(self) -> str: ...

    def environment(self, target: Target) -> dict[str, str]: ...

    def devices(self, target: Target) -> Sequence[Any]: ...

    def out_of_memory(self, message: str) -> dict[str, Any] | None: ...

    def refused_module(
        self, lowered: Any, options: Mapping[str, Any]
    ) -> str | None: ...


def backend_of(target: Target) -> Backend:
    """The backend that compiles for a target; ``local`` is the devices present.

    Raises:
      NoCompiler: there is none for this chip, and why.
    """
    name = "cpu" if target.chip is None else target.chip.compiler
    if name is None:
        assert target.chip is not None
        raise NoCompiler(
            f"target {target.text}: {target.chip.no_compiler}, as in "
            f"`scaling-lab explain --target {target.text}`"
        )
    found: Any = importlib.import_module(f"scaling_lab.compile.{name}")
    return found


def installed(distribution: str, extra: str) -> str:
    """The version of a compiler's distribution.

    Raises:
      NoCompiler: it is not installed; the message names the extra that does it.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise NoCompiler(
            f"the compiler of this target is not installed ({distribution}); it comes "
            f"with an extra: pip install 'scaling_lab[{extra}]'"
        ) from None


def options(xla_flags: str) -> Options:
    """XLA flags as compiler options: ``--xla_a=1 --xla_b`` is ``{a: "1", b: True}``.

    Flags of another compiler cannot stand in XLA_FLAGS, where the host's own would
    refuse them.

    Raises:
      ValueError: a word that is no flag.
    """
    found: Options = {}
    for word in xla_flags.split():
        if not word.startswith("--"):
            raise ValueError(
                f"xla_flags {xla_flags!r}: {word!r} is no flag; write --name=value"
            )
        name, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else "true"
        truth = {"true": True, "false": False}
        found[name] = truth.get(value.lower(), value)
    return found
