"""The module reader on real programs, compiled for eight simulated devices."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling_lab.compile import describe, hlo, memory

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
SHAPE = (64, 16)  # float32, 64 rows over 8 devices: 512 bytes on each
LOCAL_BYTES = 512


def make_mesh(axes):
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
    )


def compile_mapped(function, axes, out_specs=None):
    rows = P(tuple(axes), None)
    mapped = jax.shard_map(
        function,
        mesh=make_mesh(axes),
        in_specs=rows,
        out_specs=rows if out_specs is None else out_specs,
        check_vma=False,
    )
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct(SHAPE, jnp.float32)).compile()


def rows(text, axes):
    return hlo.by_kind_and_axis(hlo.collectives(text, axes))


def row(kind, axes, count, size):
    return {"kind": kind, "axes": list(axes), "count": count, "bytes": size}


def rotate(x_AB, axes):
    size = jax.lax.axis_size(axes)
    return jax.lax.ppermute(x_AB, axes, [(i, (i + 1) % size) for i in range(size)])


MECHANISMS = {
    "all-reduce": lambda x, axes: jax.lax.psum(x, axes),
    "all-gather": lambda x, axes: jax.lax.all_gather(x, axes, tiled=True),
    "reduce-scatter": lambda x, axes: jax.lax.psum_scatter(x, axes, tiled=True),
    "all-to-all": lambda x, axes: jax.lax.all_to_all(x, axes, 0, 0, tiled=True),
    "collective-permute": rotate,
}
SINGLES = [("data",), ("fsdp",), ("tensor",)]
PAIRS = [("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor")]


@pytest.mark.parametrize("axes", [*SINGLES, *PAIRS, tuple(CUBE)])
@pytest.mark.parametrize("kind", MECHANISMS)
def test_axes_and_bytes_on_a_cube(kind, axes):
    function = functools.partial(MECHANISMS[kind], axes=axes)
    size = LOCAL_BYTES * (2 ** len(axes) if kind == "all-gather" else 1)
    found = rows(compile_mapped(function, CUBE).as_text(), CUBE)
    assert found == [row(kind, axes, 1, size)]


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_axes_and_bytes_on_a_rectangle(kind, axis):
    axes = {"data": 4, "tensor": 2}
    function = functools.partial(MECHANISMS[kind], axes=(axis,))
    size = LOCAL_BYTES * (axes[axis] if kind == "all-gather" else 1)
    found = rows(compile_mapped(function, axes).as_text(), axes)
    assert found == [row(kind, (axis,), 1, size)]


def test_axes_of_one_device_never_appear():
    axes = {"data": 4, "expert": 1, "tensor": 2}

    def function(x):
        return jax.lax.psum(jax.lax.psum(x, "expert"), ("data", "expert"))

    found = rows(compile_mapped(function, axes).as_text(), axes)
    assert found == [row("all-reduce", ("data",), 1, LOCAL_BYTES)]


def nested(x_AB):
    def inner(x_AB, _):
        return jax.lax.psum(x_AB, "tensor") * 0.5, None

    def outer(x_AB, _):
        x_AB, _ = jax.lax.scan(inner, x_AB, None, length=3)
        return rotate(x_AB, "data") + 1, None

    return jax.lax.scan(outer, x_AB, None, length=5)[0]


@pytest.mark.parametrize("noted", [True, False])
def test_trip_counts_of_nested_scans(noted):
    text = compile_mapped(nested, CUBE).as_text()
    if not noted:
        text = re.sub(r'"known_\w+":\{[^}]*\},?', "", text)
    found = hlo.collectives(text, CUBE)
    assert hlo.by_kind_and_axis(found) == [
        row("all-reduce", ("tensor",), 15, 15 * LOCAL_BYTES),
        row("collective-permute", ("data",), 5, 5 * LOCAL_BYTES),
    ]
    assert all(item.trip_count_known and item.loop for item in found)
    assert len({item.loop for item in found}) == 2


def test_names_and_lines_come_from_the_trace():
    def function(x_AB):
        with jax.named_scope("ffn/gate"):
            return jax.lax.psum(x_AB, "tensor")

    (found,) = hlo.collectives(compile_mapped(function, CUBE).as_text(), CUBE)
    assert "ffn/gate" in found.op_name and found.loop is None
    line = function.__code__.co_firstlineno + 2
    assert found.source and found.source.endswith(f"test_hlo.py:{line}")


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    def function(x_AB):
        def going(x_AB):
            return x_AB[0, 0] < 100

        def thrice(x_AB):
            return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.psum(x, "fsdp"), x_AB)

        return jax.lax.while_loop(going, thrice, x_AB)

    compiled = compile_mapped(function, CUBE)
    (found,) = hlo.collectives(compiled.as_text(), CUBE)
    assert (found.count, found.bytes) == (3, 3 * LOCAL_BYTES)
    assert not found.trip_count_known
    assert not describe(compiled, CUBE, 0.5, None)["trip_counts_known"]


def test_every_branch_of_a_conditional_is_counted():
    def function(x_AB):
        return jax.lax.cond(
            x_AB.sum() > 0,
            lambda x: jax.lax.psum(x, "data"),
            lambda x: jax.lax.psum(x, "tensor"),
            x_AB,
        )

    found = rows(compile_mapped(function, CUBE).as_text(), CUBE)
    assert [each["axes"] for each in found] == [["data"], ["tensor"]]


def sharded_matmul():
    """A contraction over ``tensor``: float32 [32, 64] on each of 8 devices."""
    mesh = make_mesh({"data": 4, "tensor": 2})
    x = jax.ShapeDtypeStruct(
        (128, 256), jnp.float32, sharding=NamedSharding(mesh, P("data", "tensor"))
    )
    weight = jax.ShapeDtypeStruct(
        (256, 64), jnp.float32, sharding=NamedSharding(mesh, P("tensor", None))
    )
    out = NamedSharding(mesh, P("data", None))
    return jax.jit(jnp.matmul, out_shardings=out).lower(x, weight).compile()


def test_describe_is_the_compiled_column():
    column = describe(sharded_matmul(), {"data": 4, "tensor": 2}, 1.5, True)
    assert json.loads(json.dumps(column)) == column
    assert column["compile_seconds"] == 1.5 and column["cache_hit"] is True
    assert column["collectives"] == [row("all-reduce", ("tensor",), 1, 32 * 64 * 4)]


def test_memory_is_of_one_device():
    sizes = memory(sharded_matmul())
    assert sizes["argument_bytes"] == 4 * (128 * 256 // 8 + 256 * 64 // 2)
    assert sizes["output_bytes"] == 4 * 128 * 64 // 4
    assert sizes["alias_bytes"] == 0 and sizes["peak_from"] == "compiler"
    assert sizes["peak_bytes"] >= sizes["argument_bytes"] + sizes["output_bytes"]


def test_memory_without_a_planned_peak_is_a_sum_or_nothing():
    class Analysis:
        argument_size_in_bytes = 10
        output_size_in_bytes = 5
        temp_size_in_bytes = 7
        alias_size_in_bytes = 4

    class Compiled:
        def __init__(self, analysis):
            self.memory_analysis = lambda: analysis

    class Planned(Analysis):
        peak_memory_in_bytes = 17

    summed, planned = memory(Compiled(Analysis)), memory(Compiled(Planned))
    assert (summed["peak_bytes"], summed["peak_from"]) == (18, "sum")
    assert (planned["peak_bytes"], planned["peak_from"]) == (17, "compiler")
    assert set(memory(Compiled(None)).values()) == {None}


def test_another_mesh_is_refused():
    text = compile_mapped(nested, CUBE).as_text()
    with pytest.raises(ValueError, match="8 partitions but the mesh .* has 4 devices"):
        hlo.collectives(text, {"data": 2, "tensor": 2})
