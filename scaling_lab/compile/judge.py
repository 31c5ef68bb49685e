"""One lowered step put to a target's compiler: the ``compiled`` column, or a verdict.

The column is flat, bytes of one device: what `compile.describe` reads, and

* ``hbm_bytes``: memory a program can have there; ``needed_bytes`` against it; ``fits``;
* ``compiler``, ``target``, ``mesh``, ``links`` (which network each axis runs over);
* ``step_seconds``: of the compiled schedule, ``None`` where nothing prices it, and the
  rest of `compile.read`;
* ``largest_buffers``: when memory is fullest, or of an out-of-memory verdict.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from scaling_lab import compile as compiled
from scaling_lab.compile._module import Module
from scaling_lab.compile._shapes import total_bytes
from scaling_lab.compile.backends import backend_of, options
from scaling_lab.config import RunConfig
from scaling_lab.hardware import Target
from scaling_lab.layouts.mesh import links

#: What every column has, whether or not the compiler got that far.
COLUMNS = (
    "argument_bytes",
    "output_bytes",
    "temporary_bytes",
    "alias_bytes",
    "peak_bytes",
    "peak_from",
    "hbm_bytes",
    "fits",
    "step_seconds",
    "compile_seconds",
    "collectives",
)


class Verdict(NamedTuple):
    """What a compiler said: how it ended, why, the column, and the module's text."""

    status: str
    reason: str | None
    column: dict[str, Any]
    module: str | None


def judge(
    lowered: Any,
    target: Target,
    mesh: Mesh | None,
    xla_flags: str = "",
    config: RunConfig | None = None,
) -> Verdict:
    """Compiles a lowered step for its target and reads what came of it.

    Args:
      lowered: what ``jax.jit(step).lower(...)`` returns, on the target's devices.
      mesh: that it is lowered for; ``None`` where there is one device.
      xla_flags: options of the target's compiler, as people write flags.
      config: the run; with it, what its layout does not imply is told.

    Raises:
      NoCompiler: the target's compiler is not installed.
      JaxRuntimeError: it failed, for another reason than memory.
    """
    backend = backend_of(target)
    column = _facts(target, mesh) | {"compiler": backend.version()}
    own = options(xla_flags) if _takes_options(target) else {}
    start = time.perf_counter()
    try:
        executable = lowered.compile(compiler_options=own or None)
    except jax.errors.JaxRuntimeError as error:
        figures = backend.out_of_memory(str(error))
        if figures is None:
            raise
        seconds = time.perf_counter() - start
        text = backend.refused_module(lowered, own)
        column |= _refused(figures, text, dict(mesh.shape) if mesh else {}, target)
        column["compile_seconds"] = seconds
        return Verdict("oom", too_large(figures, target), column, text)
    seconds = time.perf_counter() - start
    axes = dict(mesh.shape) if mesh is not None else {}
    column |= compiled.describe(executable, axes, seconds, None, target, config)
    if column["fits"] is False:  # a compiler that plans programs of any size
        reason = too_large(column, target)
        return Verdict("oom", reason, column, executable.as_text())
    return Verdict("ok", None, column, executable.as_text())


def _refused(
    figures: dict[str, Any], text: str | None, axes: dict[str, int], target: Target
) -> dict[str, Any]:
    """The column of a program that the compiler scheduled and then refused.

    ``temporary_bytes`` is what must live beside the arguments, results included.
    """
    column = figures | {"fits": False, "peak_from": "compiler"}
    if text is None:
        return column
    named = figures["largest_buffers"]
    column |= compiled.read(text, axes, target)
    # It was not brought to code, so nothing in it has an estimate of its time.
    column |= {name: None for name in column if name.endswith("_seconds")}
    column["largest_buffers"] = named or column["largest_buffers"]
    entry = Module(text).entry.values()
    held = sum(total_bytes(i.shape) for i in entry if i.opcode == "parameter")
    beside = column["peak_bytes"] - held
    return column | {"argument_bytes": held, "temporary_bytes": beside}


def too_large(figures: dict[str, Any], target: Target) -> str:
    """The sentence of an out-of-memory verdict."""
    peak = figures.get("needed_bytes") or figures["peak_bytes"]
    memory = figures["hbm_bytes"]
    return (
        f"needs {peak / 2**30:.2f} GiB a device and {target.text} has "
        f"{memory / 2**30:.2f}: {(peak - memory) / 2**30:.2f} GiB too much; divide "
        "over more devices, keep less (--remat full), or take a smaller --batch or "
        "more --accumulate"
    )


def _facts(target: Target, mesh: Mesh | None) -> dict[str, Any]:
    memory = None if target.chip is None else target.chip.device_hbm_bytes
    return {
        **dict.fromkeys(COLUMNS),
        "hbm_bytes": memory,
        "target": target.text,
        "mesh": dict(mesh.shape) if mesh is not None else {},
        "links": links(mesh) if mesh is not None else {},
        "largest_buffers": [],
    }


def _takes_options(target: Target) -> bool:
    """Whether flags go with a program; the host's compiler reads XLA_FLAGS."""
    return target.chip is not None and target.chip.compiler in ("gpu", "tpu")
