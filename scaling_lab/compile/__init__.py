"""Compiled: what the compiler of the target says, without the target.

`memory` and `describe` read a compiled step, `read` the text of its module; `hlo`
says which collectives that has, `price` what things cost. Everything is of one device
and one step, and plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling_lab.compile import hlo, price
from scaling_lab.compile.reading import read as read
from scaling_lab.compile.unasked import implied, unasked
from scaling_lab.config import RunConfig
from scaling_lab.hardware import Target, parse_target

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
    if peak:  # what rests in the host's memory is counted with it
        peak -= getattr(analysis, "host_argument_size_in_bytes", 0)
    lasting = sizes["argument_bytes"] + sizes["output_bytes"] - sizes["alias_bytes"]
    total = lasting + sizes["temporary_bytes"]
    if peak < sizes["temporary_bytes"]:  # XLA:CPU leaves temporaries out of its peak
        peak = 0
    return sizes | {
        "peak_bytes": peak or total,
        "peak_from": "compiler" if peak else "sum",
    }


def describe(
    compiled: Any,
    mesh_axes: Mapping[str, int],
    seconds: float,
    cache_hit: bool | None,
    target: Target | str | None = None,
    config: RunConfig | None = None,
) -> dict[str, Any]:
    """The ``compiled`` column of a run record.

    Args:
      compiled: what ``jax.jit(step).lower(...).compile()`` returns.
      mesh_axes: axis name to size, in the order of the mesh's device array.
      seconds: how long the compiler took.
      cache_hit: whether it was spared by the persistent cache; `None` if unknown.
      target: the machine it was compiled for.
      config: the run; with it, what its layout does not imply is told.

    Returns:
      `memory`'s columns, ``compile_seconds``, ``cache_hit``, ``collectives`` (see
      `hlo.by_kind_and_axis`) and ``trip_counts_known``, which is false where a loop's
      trips had to be assumed. With a target all of `read`'s columns, ``needed_bytes``
      against ``hbm_bytes``, and ``fits``; with a config ``unasked`` (see `unasked`).

    Raises:
      ValueError: the mesh is not the one it was compiled for.
    """
    text = compiled.as_text()
    column = {"compile_seconds": seconds, "cache_hit": cache_hit, **memory(compiled)}
    if target is None:
        found = hlo.collectives(text, mesh_axes)
        return column | {
            "collectives": hlo.by_kind_and_axis(found),
            "trip_counts_known": all(item.trip_count_known for item in found),
        }
    column |= read(text, mesh_axes, target) | fit(column, target)
    if config is not None:
        column["unasked"] = unasked(column["collectives"], implied(config))
    return column


def fit(column: Mapping[str, Any], target: Target | str) -> dict[str, Any]:
    """Whether a step fits a device of the target.

    Args:
      column: `memory`'s.

    Returns:
      ``hbm_bytes`` that a program may use, ``needed_bytes``: arguments, results that
      are not in donated ones, and temporaries with what is lost between them; and
      ``fits``. `None` where nothing is known.
    """
    target = parse_target(target) if isinstance(target, str) else target
    room = price.physics(target.chip).hbm_bytes if target.chip else None
    needed = None
    if column["temporary_bytes"] is not None:
        needed = column["argument_bytes"] + column["output_bytes"]
        needed += column["temporary_bytes"] - column["alias_bytes"]
        needed = max(needed, column["peak_bytes"])
    fits = None if room is None or needed is None else needed <= room
    return {"hbm_bytes": room, "needed_bytes": needed, "fits": fits}
