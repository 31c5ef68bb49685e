"""The compiler of the devices present: the host's processor, as a rule."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from scaling_lab.compile.backends import NoCompiler
from scaling_lab.hardware import Target

#: A thread waits in each collective that a device has begun. XLA:CPU brings as many as
#: there are devices, or $NPROC: one device with two collectives begun may then keep the
#: others from theirs, for ever.
THREADS = 8


def version() -> str:
    """As in ``jaxlib 0.10.2``: it brings the host's compiler along."""
    return f"jaxlib {importlib.metadata.version('jaxlib')}"


def environment(target: Target) -> dict[str, str]:
    """So many simulated devices, or nothing for the devices present."""
    if target.chip is None:
        return {}
    simulated = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(target.devices)}
    return simulated | threads(target.devices or 1)


def threads(devices: int) -> dict[str, str]:
    """Enough threads for simulated devices; one computes best with the host's own."""
    return {"NPROC": str(THREADS * devices)} if devices > 1 else {}


def simulate(devices: int) -> None:
    """Makes so many devices of the host's processor, in a process that has none yet."""
    for name, value in threads(devices).items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


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
