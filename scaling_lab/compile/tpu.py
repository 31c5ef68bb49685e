"""The TPU's compiler, libtpu, without a TPU.

Source: jax.experimental.topologies; the words of a topology are libtpu's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling_lab.compile.backends import NoCompiler, installed
from scaling_lab.hardware import Target

EXTRA = "tpu-compile"

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
#: A program that was laid out and is too large, and one that is hopeless at once.
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_NEEDED = re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_BUFFER = re.compile(
    rf"Size: {_SIZE}\n"
    r"(?:\s*Operator: op_type=\S+ op_name=\"?(?P<op>[^\n]*?)\"?"
    r"(?: source_file=\"?(?P<file>[^\"\s]+)\"? source_line=(?P<line>\d+)[^\n]*)?\n)?"
    r"(?:\s*Shape: (?P<shape>[^\n]+)\n)?"
)


def version() -> str:
    """As in ``libtpu 0.0.42.1``.

    Raises:
      NoCompiler: libtpu is not installed.
    """
    return f"libtpu {installed('libtpu', EXTRA)}"


def environment(target: Target) -> dict[str, str]:
    """Variables that libtpu reads when it is loaded.

    It asks no metadata server for the machine it is on, several processes may load it
    (each would otherwise wait for a lock file, one left by a killed process too), and
    JAX itself stays on the host's processor.
    """
    del target
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def devices(target: Target) -> Sequence[Any]:
    """The devices of a torus, all slices together.

    Raises:
      NoCompiler: libtpu is not installed, or this one does not know the torus.
    """
    from jax.experimental import topologies

    version()
    assert target.chip is not None
    for name, value in environment(target).items():
        os.environ.setdefault(name, value)
    # Every torus has three axes there; the last of a flat one has length 1.
    words: dict[str, Any] = {"wrap": (*target.wraps, False)[:3]}
    if target.slices > 1:
        words["num_slices"] = target.slices
    if target.chips == 1:  # the usual host has four
        words["chips_per_host_bounds"] = (1, 1, 1)
    shape = "x".join(map(str, target.topology))
    name = f"{target.chip.compile_name}:{shape}"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **words
        )
    except Exception as error:  # jaxlib's own class, and what it says is all there is
        raise NoCompiler(
            f"target {target.text}: {version()} refuses it: {error}"
        ) from error
    return found.devices


def out_of_memory(message: str) -> dict[str, Any] | None:
    """What an out-of-memory verdict says, in bytes of one device; else ``None``.

    Returns:
      ``peak_bytes`` (needed), ``hbm_bytes`` (there) and ``largest_buffers``: rows of
      ``bytes``, ``op_name``, ``source``, ``shape``, the largest first.
    """
    found = _USED.search(message) or _NEEDED.search(message)
    if found is None:
        return None
    buffers = [
        {
            "bytes": _bytes(match[1], match[2]),
            "op_name": match["op"] or "",
            "source": f"{match['file']}:{match['line']}" if match["file"] else None,
            "shape": match["shape"],
        }
        for match in _BUFFER.finditer(message)
    ]
    return {
        "peak_bytes": _bytes(found[1], found[2]),
        "hbm_bytes": _bytes(found[3], found[4]),
        "largest_buffers": sorted(buffers, key=lambda row: -row["bytes"]),
    }


def refused_module(lowered: Any, options: Mapping[str, Any]) -> str | None:
    """The scheduled module of a program that was refused for its memory, if it says.

    The compiler writes it where it is told to dump, so it is asked once more.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            lowered.compile(compiler_options={**options, "xla_dump_to": folder})
        for path in sorted(Path(folder).glob("*.oom_intermediate_module.txt")):
            return path.read_text("utf-8", errors="replace")
    return None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
