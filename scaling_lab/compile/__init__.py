"""Compiled: what the compiler of the target says, without the target.

`memory` and `describe` read a compiled step; `scaling_lab.compile.hlo` reads its
module. Everything is bytes of one device, and plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling_lab.compile import hlo

_COLUMNS = {
    "argument_bytes": "argument_size_in_bytes",
    "output_bytes": "output_size_in_bytes",
    "temporary_bytes": "temp_size_in_bytes",
    "alias_bytes": "alias_size_in_bytes",
}


def memory(compiled: Any) -> dict[str, Any]:
    """Bytes of one device that a compiled step needs, as the compiler planned them.

    Args:
      compiled: what ``jax.jit(step).lower(...).compile()`` returns.

    Returns:
      ``argument_bytes``, ``output_bytes``, ``temporary_bytes``, ``alias_bytes``
      (outputs that live in donated arguments), ``peak_bytes`` and ``peak_from``:
      "compiler" where it planned the peak itself, "sum" where it is argument +
      output + temporary - alias, an upper bound. All `None` where it says nothing.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return dict.fromkeys([*_COLUMNS, "peak_bytes", "peak_from"])
    sizes: dict[str, Any] = {
        column: getattr(analysis, field) for column, field in _COLUMNS.items()
    }
    peak = getattr(analysis, "peak_memory_in_bytes", 0)
    lasting = sizes["argument_bytes"] + sizes["output_bytes"] - sizes["alias_bytes"]
    total = lasting + sizes["temporary_bytes"]
    if peak < sizes["temporary_bytes"]:  # XLA:CPU leaves temporaries out of its peak
        peak = 0
    return sizes | {
        "peak_bytes": peak or total,
        "peak_from": "compiler" if peak else "sum",
    }


def describe(
    compiled: Any, mesh_axes: Mapping[str, int], seconds: float, cache_hit: bool | None
) -> dict[str, Any]:
    """The ``compiled`` column of a run record.

    Args:
      compiled: what ``jax.jit(step).lower(...).compile()`` returns.
      mesh_axes: axis name to size, in the order of the mesh's device array.
      seconds: how long the compiler took.
      cache_hit: whether it was spared by the persistent cache; `None` if unknown.

    Returns:
      `memory`'s columns, ``compile_seconds``, ``cache_hit``, ``collectives`` (see
      `hlo.by_kind_and_axis`) and ``trip_counts_known``, which is false where a loop's
      trips had to be assumed.

    Raises:
      ValueError: the mesh is not the one it was compiled for.
    """
    found = hlo.collectives(compiled.as_text(), mesh_axes)
    return {
        "compile_seconds": seconds,
        "cache_hit": cache_hit,
        **memory(compiled),
        "collectives": hlo.by_kind_and_axis(found),
        "trip_counts_known": all(item.trip_count_known for item in found),
    }
