"""The compiler of the devices present: the host's processor, as a rule."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from scaling_lab.compile.backends import NoCompiler
from scaling_lab.hardware import Target


def version() -> str:
    """As in ``jaxlib 0.10.2``: it brings the host's compiler along."""
    return f"jaxlib {importlib.metadata.version('jaxlib')}"


def environment(target: Target) -> dict[str, str]:
    """So many simulated devices, or nothing for the devices present."""
    if target.chip is None:
        return {}
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(target.devices)}


def devices(target: Target) -> Sequence[Any]:
    """The first devices there are.

    Raises:
      NoCompiler: there are fewer; their number is fixed when JAX starts.
    """
    wanted = target.devices
    found = jax.devices() if target.chip is None else jax.devices("cpu")
    if wanted is not None and wanted > len(found):
        raise NoCompiler(
            f"target {target.text}: this process has {len(found)} device(s); start it "
            f"with JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={wanted}"
        )
    return found[:wanted]


def out_of_memory(message: str) -> None:
    """``None``: a host's memory is not the compiler's concern."""
    del message


def refused_module(lowered: Any, options: Mapping[str, Any]) -> None:
    """``None``: it refuses none."""
    del lowered, options
