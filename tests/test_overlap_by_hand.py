"""What hides communication by hand is what it replaces: results and every gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.training import close, on_host, run_of

from experiments import overlap_by_hand
from scaling_lab.train.program import make_placement

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize(
    ("layout", "variant"),
    [
        ("fsdp=2,tensor=4+sequence", "in turns"),
        ("fsdp=8", "ahead"),
        ("fsdp=8", "ahead by two"),
    ],
)
def test_by_hand_is_what_it_replaces(layout, variant, tiny):
    config = run_of(tiny("llama", L=3), layout, remat="full")
    plain = make_placement(config)
    found = []
    for place in (plain, overlap_by_hand.bound(plain, variant)):
        step, arguments, _ = overlap_by_hand.layers(config, place)
        keys = iter(jax.random.split(jax.random.key(0), 32))
        given = [
            jnp.broadcast_to(jnp.arange(config.length), a.shape)
            if a.dtype == jnp.int32
            else jax.random.normal(next(keys), a.shape) / a.shape[-2] ** 0.5
            if a.ndim > 2
            else jnp.ones(a.shape)
            for a in jax.tree.leaves(arguments)
        ]
        given = jax.tree.unflatten(jax.tree.structure(arguments), given)
        out, gradients, dx = on_host(jax.jit(step)(*given))
        found.append({"out": out, "dx": dx, **gradients})
    close(found[1], found[0], 1e-5)
    assert all(np.any(array) for array in found[0].values())


def test_each_way_has_its_own_program(tiny):
    """What is compared differs: only products in turns send pieces round."""
    config = run_of(tiny("llama"), "fsdp=2,tensor=4+sequence", remat="full")
    place = make_placement(config)
    turned = overlap_by_hand.bound(place, "in turns")
    moves = []
    for each in (place, turned):
        step, arguments, _ = overlap_by_hand.layers(
            dataclasses.replace(config, length=32), each
        )
        moves.append(str(jax.make_jaxpr(step)(*arguments)).count("ppermute["))
    assert moves[0] == 0 and moves[1] > 20
