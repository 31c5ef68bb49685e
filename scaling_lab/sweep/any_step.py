"""Any jitted function, judged for a machine that is not here."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling_lab import record
from scaling_lab.compile.backends import backend_of
from scaling_lab.compile.judge import Verdict, judge
from scaling_lab.data import store
from scaling_lab.hardware import Target, parse_target
from scaling_lab.layouts.mesh import mesh_of
from scaling_lab.record import RunRecord
from scaling_lab.sweep.provenance import environment, provenance
from scaling_lab.sweep.run import failure


@functools.cache
def target_devices(target: str) -> tuple[Any, ...]:
    """The devices of a target, the same ones every time.

    Raises:
      NoCompiler: its compiler is not installed, or there is none.
    """
    parsed = parse_target(target)
    return tuple(backend_of(parsed).devices(parsed))


def target_mesh(target: str, axes: Mapping[str, int]) -> Mesh:
    """A mesh on the devices of a machine that is not here.

    Its axes have the order and sizes given; who stands where follows the machine, and
    axes called tensor, context, expert or fsdp get closer links than the others.

    Raises:
      NoCompiler: the target's compiler is not installed, or there is none.
      ValueError: the axes do not make up the target's devices.
    """
    devices = target_devices(target)
    count = math.prod(axes.values())
    if count != len(devices):
        raise ValueError(
            f"axes {dict(axes)} make up {count} devices and target {target} has "
            f"{len(devices)}"
        )
    return mesh_of(axes, devices)


def compile_step(
    fn: Any,
    args: Sequence[Any],
    in_shardings: Any,
    target: str,
    *,
    axes: Mapping[str, int] | None = None,
    xla_flags: str = "",
    module: str | Path | None = None,
) -> RunRecord:
    """What a target's compiler says of any function, whoever wrote it.

    It compiles in this process. Before JAX starts, a GPU's compiler wants
    ``JAX_PLATFORMS=cpu``, and ``cpu:8`` wants ``JAX_NUM_CPU_DEVICES=8`` too; the
    variables of a TPU's compiler are set here. A function that asks
    ``jax.default_backend()`` is told of this process, not of the target.

        record = lab.compile_step(
            step, (params, batch), (P(), P("data")), "h100:8x8", axes={"data": 64}
        )
        record.compiled["peak_bytes"], record.compiled["fits"]

    Args:
      fn: a function, or one already jitted, with its donations and static arguments.
      args: its positional arguments; arrays or ``jax.ShapeDtypeStruct``.
      in_shardings: where they live: a prefix of the tree `args`, of
        ``PartitionSpec``, ``NamedSharding`` or ``None`` (whole on every device). A
        ``NamedSharding`` of another mesh is taken for its axes.
      target: as every command takes it.
      axes: the mesh, as axis sizes; may be left out where a ``NamedSharding`` has it.
      xla_flags: options of the target's compiler, as people write flags.
      module: where to write the scheduled HLO text.

    Returns:
      a record of status ``ok``; ``oom`` with the compiler's figures; ``crashed`` with
      a reason.

    Raises:
      NoCompiler: the target's compiler is not installed, or there is none.
      ValueError: no axes, or not as many as the target has devices.
    """
    started = time.perf_counter()
    parsed = parse_target(target)
    mesh = _mesh(parsed, in_shardings, axes)
    structs = _placed(tuple(args), in_shardings, mesh)
    source = provenance(xla_flags, 0)
    asked = _asked(fn, structs, parsed, mesh)
    status, reason, column, text = _judged(fn, structs, parsed, mesh, xla_flags)
    if module is not None and text is not None:
        store.write(Path(module), text)
    source["seconds"] = time.perf_counter() - started
    return RunRecord(
        id=record.digest([asked, xla_flags, column.get("program")]),
        environment=environment(xla_flags),
        status=status,
        reason=reason,
        asked=asked,
        compiled=column or None,
        provenance=source,
    )


def _judged(
    fn: Any, structs: tuple[Any, ...], target: Target, mesh: Mesh, xla_flags: str
) -> Verdict:
    """The compiler's verdict; a failure is one too, whatever it is."""
    try:
        jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
        with jax.set_mesh(mesh):
            lowered = jitted.lower(*structs)
        program = {"program": record.digest(lowered.as_text())}
        verdict = judge(lowered, target, mesh, xla_flags)
    except Exception as error:
        return Verdict(*failure(error), {}, None)
    return verdict._replace(column=verdict.column | program)


def _mesh(target: Target, in_shardings: Any, axes: Mapping[str, int] | None) -> Mesh:
    """The target's mesh with the axes that were given, or that shardings have."""
    devices = target_devices(target.text)
    for leaf in jax.tree.leaves(in_shardings, is_leaf=_is_sharding):
        if isinstance(leaf, NamedSharding):
            own = leaf.mesh
            if isinstance(own, Mesh) and set(own.devices.flat) == set(devices):
                return own
            axes = axes or dict(own.shape)
    if axes is None:
        if len(devices) > 1:
            raise ValueError(
                f"target {target.text} has {len(devices)} devices and no axes; say "
                f"axes={{'data': {len(devices)}}}, or give a NamedSharding"
            )
        axes = {"data": 1}
    return target_mesh(target.text, axes)


def _placed(args: tuple[Any, ...], in_shardings: Any, mesh: Mesh) -> tuple[Any, ...]:
    """The arguments as shapes that know where they live on the mesh."""

    def under(where: Any, tree: Any) -> Any:
        spec = where.spec if isinstance(where, NamedSharding) else where
        sharding = NamedSharding(mesh, spec if spec is not None else PartitionSpec())

        def one(leaf: Any) -> Any:
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                return leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(one, tree)

    if _is_sharding(in_shardings):
        return under(in_shardings, args)
    return jax.tree.map(under, tuple(in_shardings), args, is_leaf=_is_sharding)


def _is_sharding(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, NamedSharding | PartitionSpec)


def _asked(
    fn: Any, structs: tuple[Any, ...], target: Target, mesh: Mesh
) -> dict[str, Any]:
    """The record's ``asked`` column of a function that no config describes."""
    leaves = jax.tree_util.tree_leaves_with_path(structs)
    return {
        "function": getattr(fn, "__name__", type(fn).__name__),
        "target": target.text,
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "simulated": target.simulated,
        "arguments": {
            jax.tree_util.keystr(path): _written(leaf)
            for path, leaf in leaves
            if isinstance(leaf, jax.ShapeDtypeStruct)
        },
    }


def _written(leaf: jax.ShapeDtypeStruct) -> str:
    """As in ``bfloat16[8, 128] ('data',)``."""
    assert isinstance(leaf.sharding, NamedSharding)
    return f"{leaf.dtype}{list(leaf.shape)} {tuple(leaf.sharding.spec)}"
