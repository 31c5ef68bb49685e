"""The module reader on written modules, as the GPU and TPU compilers write them."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_lab.compile import hlo

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}


def rows(text, axes):
    return hlo.by_kind_and_axis(hlo.collectives(text, axes))


def row(kind, axes, count, size):
    return {"kind": kind, "axes": list(axes), "count": count, "bytes": size}


def module(*lines, others=""):
    body = "".join(f"  {line}\n" for line in lines)
    return (
        f"HloModule written\n\n{others}\nENTRY %main (p: s32[]) -> s32[] {{\n{body}}}"
    )


CELL = "%p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)"  # 2048 bytes


def test_asynchronous_pairs_count_once():
    text = module(
        CELL,
        "%s = (bf16[8,128]{1,0}, bf16[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) "
        "all-gather-start(%p), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), "
        "dimensions={0}, use_global_device_ids=true",
        "%d = bf16[16,128]{1,0} all-gather-done(%s)",
        "%t = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) "
        "collective-permute-start(bf16[8,128]{1,0:T(8,128)} %p), channel_id=2, "
        "source_target_pairs={{0,4},{4,0},{1,5},{5,1}}",
        "ROOT %e = bf16[8,128]{1,0} collective-permute-done(%t)",
    )
    assert rows(text, CUBE) == [
        row("all-gather", ("fsdp",), 1, 4096),
        row("collective-permute", ("data",), 1, 2048),
    ]


def test_collectives_inside_fusions_and_asynchronous_calls():
    inner = (
        "%wrapped (q: bf16[8,128]) -> bf16[8,128] {\n"
        "  %q = bf16[8,128]{1,0} parameter(0)\n"
        "  ROOT %r = bf16[8,128]{1,0} all-reduce(%q), channel_id=1, "
        "replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add\n"
        '}, execution_thread="sparsecore"\n'
        "%add (x: bf16[], y: bf16[]) -> bf16[] {\n"
        "  %x = bf16[] parameter(0)\n"
        "  %y = bf16[] parameter(1)\n"
        "  ROOT %z = bf16[] add(%x, %y)\n"
        "}\n"
    )
    text = module(
        CELL,
        "%f = bf16[8,128] fusion(%p), kind=kCustom, calls=%wrapped, "
        'metadata={op_name="jit(step)/ffn/down"}',
        "%s = ((bf16[8,128]), bf16[8,128], u32[]) async-start(%f), calls=%wrapped",
        "ROOT %d = bf16[8,128] async-done(%s), calls=%wrapped",
        others=inner,
    )
    first, second = hlo.collectives(text, CUBE)
    assert first.axes == second.axes == ("fsdp", "tensor")
    assert (first.op_name, second.op_name) == ("jit(step)/ffn/down", "")


def test_fused_slices_and_overlapped_chains_of_the_tpu_compiler():
    gather = (
        "all-gather(%q), channel_id=6, replica_groups={{0,2},{4,6},{1,3},{5,7}}, "
        'dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="1"}'
    )
    chain = "".join(
        f"%{name} (q: bf16[8,128]) -> bf16[8,256] {{\n"
        f"  %q = bf16[8,128] parameter(0)\n  %g = bf16[8,256] {gather}\n"
        f'  ROOT %c = bf16[8,256] custom-call(%g), custom_call_target="{target}"\n}}\n'
        for name, target in (
            ("a", "AsyncCollectiveStart"),
            ("b", "AsyncCollectiveDone"),
        )
    )
    scatter = (
        "%all-reduce-scatter.1 (q: bf16[8,128]) -> bf16[4,128] {\n"
        "  %q = bf16[8,128] parameter(0)\n  %i = s32[] constant(0)\n"
        "  %r = bf16[8,128] all-reduce(%q), channel_id=7, replica_groups=[4,2]<=[8], "
        "use_global_device_ids=true\n"
        "  ROOT %s = bf16[4,128] dynamic-slice(%r, %i, %i)\n}\n"
    )
    text = module(
        CELL,
        "%start = bf16[8,256] fusion(%p), kind=kCustom, calls=%a",
        "%done = bf16[8,256] fusion(%p), kind=kCustom, calls=%b",
        "ROOT %f = bf16[4,128] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
        others=chain + scatter,
    )
    assert rows(text, CUBE) == [
        row("all-gather", ("fsdp",), 1, 4096),
        row("reduce-scatter", ("tensor",), 1, 2048),
    ]


def reduce(groups, flags=", channel_id=1, use_global_device_ids=true"):
    return module(
        CELL, f"ROOT %r = bf16[8,128] all-reduce(%p), replica_groups={groups}{flags}"
    )


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{}", ("data", "fsdp", "tensor")),
        ("{{0,1,2,3,4,5,6,7}}", ("data", "fsdp", "tensor")),
        ("{{4,0},{1,5},{6,2},{3,7}}", ("data",)),
        ("{{0,1},{2,3}}", ("unknown",)),
        ("{{0,3},{1,2},{4,7},{5,6}}", ("unknown",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[2,4]<=[4,2]T(1,0)", ("data", "fsdp")),
        ("[2,4]<=[2,2,2]T(1,0,2)", ("data", "tensor")),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}", ("data", "fsdp")),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ("data", "tensor")),
        ("mesh[a=2,b=4], device_ids=([0,2,4,6,1,3,5,7]) {a}", ("tensor",)),
        ("mesh[a=4,b=2], device_ids=([2,4]T(1,0)) {a}", ("fsdp", "tensor")),
    ],
)
def test_every_way_to_write_groups(groups, axes):
    assert rows(reduce(groups), CUBE) == [row("all-reduce", axes, 1, 2048)]


def test_groups_of_one_device_are_left_out():
    assert rows(reduce("{{0},{1},{2},{3},{4},{5},{6},{7}}"), CUBE) == []
    assert rows(reduce("[8,1]<=[8]"), CUBE) == []
    still = "%r = bf16[8,128] collective-permute(%p), source_target_pairs={{0,0},{1,1}}"
    assert rows(module(CELL, still), CUBE) == []


def test_a_group_of_replicas_spans_the_partitions():
    found = rows(reduce("{{0}}", ", channel_id=1"), CUBE)
    assert found == [row("all-reduce", tuple(CUBE), 1, 2048)]


def test_combined_and_ragged_operands():
    text = module(
        CELL,
        "%q = s32[4]{0} parameter(1)",
        "%r = (bf16[8,128]{1,0}, s32[4]{0}) all-reduce(%p, /*index=1*/%q), "
        "replica_groups=[4,2]<=[8], channel_id=1, use_global_device_ids=true",
        "ROOT %a = bf16[8,128] ragged-all-to-all(%p, %p, %q, %q, %q, %q), "
        "replica_groups={{0,4},{1,5},{2,6},{3,7}}, channel_id=2",
    )
    assert rows(text, CUBE) == [
        row("all-reduce", ("tensor",), 1, 2048 + 16),
        row("ragged-all-to-all", ("data",), 1, 2048),
    ]


@pytest.mark.parametrize(("held", "room"), [(8, 64), (64, 8)])
def test_a_ragged_exchange_sends_no_more_than_its_rows(held, room):
    """Into a buffer with room for the worst, and out of one: eight rows both times."""
    text = module(
        CELL,
        f"%h = bf16[{held},128] broadcast(%p)",
        f"%o = bf16[{room},128] broadcast(%p)",
        "%q = s32[4]{0} parameter(1)",
        f"ROOT %a = bf16[{room},128] ragged-all-to-all(%h, %o, %q, %q, %q, %q), "
        "replica_groups={{0,4},{1,5},{2,6},{3,7}}, channel_id=2",
    )
    assert rows(text, CUBE) == [row("ragged-all-to-all", ("data",), 1, 8 * 128 * 2)]


def test_collectives_in_branches_are_found_wherever_they_stand():
    inner = (
        "%deep (d: bf16[8,128]) -> bf16[8,128] {\n  %d = bf16[8,128] parameter(0)\n"
        "  ROOT %r = bf16[8,128] collective-permute-start(%d), channel_id=1, "
        'source_target_pairs={{0,1}}, metadata={op_name="here"}\n}\n'
        "%yes (y: bf16[8,128]) -> bf16[8,128] {\n  %y = bf16[8,128] parameter(0)\n"
        "  ROOT %c = bf16[8,128] call(%y), to_apply=%deep\n}\n"
        "%no (n: bf16[8,128]) -> bf16[8,128] {\n"
        "  ROOT %n = bf16[8,128] parameter(0)\n}\n"
    )
    branch = "ROOT %b = bf16[8,128] conditional(%p, %p, %p), "
    branch += "true_computation=%yes, false_computation=%no"
    text = module(CELL, branch, others=inner)
    assert hlo.in_branches(text) == ["collective-permute, here"]
    assert hlo.in_branches(module(CELL, "ROOT %c = bf16[8,128] copy(%p)")) == []


def loop(start, bound, update, direction, swapped=False):
    """A loop whose bound and step stand in its state, as the TPU compiler has them."""
    sides = "%b, %i" if swapped else "%i, %b"
    state = "(s32[], bf16[8,128], s32[], s32[])"
    element = "get-tuple-element(%s), index="
    others = (
        f"%cond (s: {state}) -> pred[] {{\n  %s = {state} parameter(0)\n"
        f"  %i = s32[] {element}0\n  %b = s32[] {element}2\n"
        f"  ROOT %c = pred[] compare({sides}), direction={direction}\n}}\n"
        f"%body (s: {state}) -> {state} {{\n  %s = {state} parameter(0)\n"
        f"  %i = s32[] {element}0\n  %x = bf16[8,128] {element}1\n"
        f"  %b = s32[] {element}2\n  %k = s32[] {element}3\n"
        "  %r = bf16[8,128] all-reduce(%x), replica_groups=[4,2]<=[8], channel_id=1, "
        f"use_global_device_ids=true\n  %n = s32[] {update}\n"
        f"  ROOT %t = {state} tuple(%n, %r, %b, %k)\n}}\n"
    )
    return module(
        CELL,
        f"%start = s32[] {start}",
        f"%bound = s32[] constant({bound})",
        "%step = s32[] constant(2)",
        "%moved = (s32[]{:S(1)}, s32[], u32[]) copy-start(%start)",
        "%zero = s32[]{:S(1)} copy-done(%moved)",
        f"%t = {state} tuple(%zero, %p, %bound, /*index=3*/%step)",
        f"ROOT %w = {state} while(%t), condition=%cond, body=%body",
        others=others,
    )


@pytest.mark.parametrize(
    ("start", "bound", "update", "direction", "swapped", "count", "known"),
    [
        ("constant(0)", 7, "add(%i, %k)", "LT", False, 4, True),
        ("constant(1)", 7, "add(%k, %i)", "LE", False, 4, True),
        ("constant(0)", 8, "add(%i, %k)", "NE", False, 4, True),
        ("constant(9)", 2, "subtract(%i, %k)", "GT", False, 4, True),
        ("constant(9)", 3, "subtract(%i, %k)", "GE", False, 4, True),
        ("constant(0)", 7, "add(%i, %k)", "GT", True, 4, True),
        ("constant(9)", 7, "add(%i, %k)", "LT", False, 0, True),
        ("constant(0)", 7, "add(%i, %k)", "GT", False, 1, False),
        ("constant(0)", 7, "add(%i, %k)", "EQ", False, 1, False),
        ("parameter(1)", 7, "add(%i, %k)", "LT", False, 4, False),
        ("constant(0)", 7, "multiply(%i, %k)", "LT", False, 7, False),
    ],
)
def test_trip_counts_are_read_from_the_condition(
    start, bound, update, direction, swapped, count, known
):
    text = loop(start, bound, update, direction, swapped)
    (found,) = hlo.collectives(text, CUBE)
    assert (found.count, found.bytes) == (count, count * 2048)
    assert (found.trip_count_known, found.loop) == (known, "body")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0}", 4096),
        ("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s32[])", 16),
        ("pred[5]", 5),
        ("f8e4m3fn[16]", 16),
        ("s4[3]{0:E(4)}", 2),
        ("c64[2]", 16),
        ("f32[<=8]", 32),
        ("token[]", 0),
        ("f32[0,4]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.shape_bytes(shape) == size


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="pass compiled.as_text"):
        hlo.collectives("module @jit_step {", CUBE)
    with pytest.raises(ValueError, match="form that is not known"):
        hlo.collectives(reduce("@groups"), CUBE)
    with pytest.raises(ValueError, match="names partition 8"):
        hlo.collectives(reduce("{{0,8}}"), CUBE)


@st.composite
def iotas(draw):
    dims = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(dims))))
    total = math.prod(dims)
    size = draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    return dims, order, size


@settings(deadline=None)
@given(iotas())
def test_iota_groups_are_a_transposed_count(case):
    dims, order, size = case
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    places = itertools.product(*(range(dims[axis]) for axis in order))
    ids = [
        sum(strides[axis] * step for axis, step in zip(order, place, strict=True))
        for place in places
    ]
    expected = [ids[at : at + size] for at in range(0, len(ids), size)]
    text = f"[{len(expected)},{size}]<=[{','.join(map(str, dims))}]"
    text += f"T({','.join(map(str, order))})"
    assert hlo.iota_groups(text) == expected


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_groups_find_back_their_axes(sizes, data):
    mesh = {f"axis{number}": size for number, size in enumerate(sizes)}
    chosen = data.draw(st.sets(st.sampled_from(list(mesh))))
    groups = {}
    for number, place in enumerate(itertools.product(*map(range, sizes))):
        fixed = tuple(
            at for name, at in zip(mesh, place, strict=True) if name not in chosen
        )
        groups.setdefault(fixed, []).append(number)
    shuffled = data.draw(st.permutations(list(groups.values())))
    expected = tuple(name for name in mesh if name in chosen and mesh[name] > 1)
    assert hlo.axes_of(shuffled, mesh) == expected
