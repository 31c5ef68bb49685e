"""Meshes follow the machine: the busiest axis on the closest links."""

import itertools

import jax
import numpy as np
import pytest

from scaling_lab.layouts import parse
from scaling_lab.layouts.mesh import links, make_mesh, mesh_of
from scaling_lab.sweep.any_step import target_mesh


def lines(mesh, axis):
    """The groups of devices that work together along one axis."""
    number = mesh.axis_names.index(axis)
    return np.moveaxis(mesh.devices, number, -1).reshape(-1, mesh.shape[axis])


def moving(mesh, axis):
    """The physical dims (x, y, z, core) along which an axis moves."""
    dims = set()
    for line in lines(mesh, axis):
        places = np.array([(*device.coords, device.core_on_chip) for device in line])
        dims |= {"xyzc"[dim] for dim in np.flatnonzero(np.ptp(places, axis=0))}
    return "".join(sorted(dims))


def hops(target, mesh, axis):
    """The longest way between neighbours of an axis, its ends joined, rings counted."""
    topology = (*target.topology, 1)[:3]
    wraps = (*target.wraps, False)[:3]
    longest = 0
    for line in lines(mesh, axis):
        for a, b in itertools.pairwise(line):
            steps = 0
            for size, wrap, one, two in zip(
                topology, wraps, a.coords, b.coords, strict=True
            ):
                far = abs(one - two)
                steps += min(far, size - far) if wrap else far
            longest = max(longest, steps)
    return longest


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("target", "axes", "moves"),
    [
        # Whole physical axes, the busiest axis first, whatever the order written.
        ("tpu-v5p:4x4x4", {"fsdp": 16, "tensor": 4}, {"tensor": "x", "fsdp": "yz"}),
        ("tpu-v5p:4x4x4", {"tensor": 4, "fsdp": 16}, {"tensor": "x", "fsdp": "yz"}),
        ("tpu-v5p:4x4x4", {"fsdp": 4, "tensor": 16}, {"tensor": "xy", "fsdp": "z"}),
        ("tpu-v5p:4x4x4", {"fsdp": 64}, {"fsdp": "xyz"}),
        ("tpu-v6e:4x8", {"data": 4, "fsdp": 8}, {"fsdp": "y", "data": "x"}),
        # A part of an axis where no whole one will do.
        ("tpu-v5p:8x8x8", {"fsdp": 128, "tensor": 4}, {"tensor": "x"}),
        # Two devices a chip: the busiest axis runs over both.
        ("tpu-7x:4x4x4", {"fsdp": 64, "tensor": 2}, {"tensor": "c", "fsdp": "xyz"}),
        ("tpu-v4:4x4x4", {"fsdp": 64, "tensor": 2}, {"tensor": "c", "fsdp": "xyz"}),
        ("tpu-v4:4x4x4", {"tensor": 8, "data": 16}, {"tensor": "cx", "data": "yz"}),
    ],
)
def test_an_axis_takes_whole_axes_of_the_torus(target, axes, moves):
    mesh = target_mesh(target, axes)
    assert mesh.axis_names == tuple(axes) and dict(mesh.shape) == axes
    assert len(set(mesh.devices.flat)) == mesh.size
    assert {axis: moving(mesh, axis) for axis in moves} == moves
    assert set(links(mesh).values()) == {"ici"}


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("target", "axes", "busiest"),
    [
        ("tpu-v5p:4x4x4", {"data": 2, "fsdp": 8, "tensor": 4}, "tensor"),
        ("tpu-v5p:8x8x8", {"fsdp": 128, "tensor": 4}, "tensor"),
        ("tpu-v6e:16x16", {"fsdp": 32, "tensor": 8}, "tensor"),
        ("tpu-v5e:4x4", {"tensor": 16}, "tensor"),
    ],
)
def test_neighbours_of_the_busiest_axis_are_neighbours_on_the_torus(
    target, axes, busiest
):
    from scaling_lab.hardware import parse_target

    mesh = target_mesh(target, axes)
    assert hops(parse_target(target), mesh, busiest) == 1


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("target", "axes", "joined"),
    [
        ("tpu-v6e:4x4*2", {"fsdp": 16, "data": 2}, {"data": "dcn", "fsdp": "ici"}),
        ("tpu-v6e:4x4*2", {"data": 4, "fsdp": 8}, {"data": "dcn", "fsdp": "ici"}),
        ("tpu-v6e:4x4*4", {"stage": 4, "tensor": 16}, {"stage": "dcn"}),
        ("tpu-v6e:4x4*2", {"fsdp": 8, "tensor": 4}, {"fsdp": "dcn", "tensor": "ici"}),
        ("tpu-v4:2x2x2*2", {"data": 2, "tensor": 16}, {"data": "dcn", "tensor": "ici"}),
    ],
)
def test_what_sends_least_crosses_slices(target, axes, joined):
    found = links(target_mesh(target, axes))
    assert {axis: found[axis] for axis in joined} == joined


@pytest.mark.tpu
def test_axes_that_are_not_the_target_are_told():
    with pytest.raises(ValueError, match="make up 8 devices and target .* has 16"):
        target_mesh("tpu-v6e:4x4", {"fsdp": 8})


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("axes", "joined"),
    [
        ({"tensor": 8, "fsdp": 4}, {"tensor": "nvlink", "fsdp": "dcn"}),
        ({"fsdp": 32}, {"fsdp": "dcn"}),
        ({"fsdp": 2, "context": 4, "stage": 4}, {"stage": "dcn", "context": "nvlink"}),
    ],
)
def test_the_busiest_axes_stay_inside_a_node(axes, joined):
    mesh = target_mesh("h100:4x8", axes)
    found = links(mesh)
    assert mesh.axis_names == tuple(axes)
    assert {axis: found[axis] for axis in joined} == joined


def test_simulated_devices_stand_in_order():
    layout = parse("fsdp=4,tensor=2")
    mesh = make_mesh(layout)
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert set(links(mesh).values()) == {"host"}
    written = mesh_of({"tensor": 2, "fsdp": 4}, jax.devices())
    assert written.axis_names == ("tensor", "fsdp")
    # Told in another order, the same devices work together.
    assert {frozenset(d.id for d in line) for line in lines(mesh, "tensor")} == {
        frozenset(d.id for d in line) for line in lines(written, "tensor")
    }
