"""A layer of experts on every device of a mesh: who holds what, and what they say.

One `shard_map`, manual over every axis: weights are gathered inside, so that their
gradients leave divided as the weights rest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from scaling_lab.parallel import keeping
from scaling_lab.parallel.experts import routing as routes
from scaling_lab.parallel.experts.all_to_all import all_to_all
from scaling_lab.parallel.experts.capacity import capacity
from scaling_lab.parallel.experts.dense import dense
from scaling_lab.parallel.experts.products import Expert, Grouped, ragged
from scaling_lab.parallel.experts.ring import ring
from scaling_lab.parallel.experts.routing import Tokens
from scaling_lab.parallel.experts.sorted import by_order
from scaling_lab.parallel.experts.work import Result, Work
from scaling_lab.parallel.verbs import Routing

Array = jax.Array
Axes = tuple[str, ...]
Spec = tuple[Axes, ...]

#: What `place.experts` may be bound to.
MECHANISMS: dict[str, Callable[[Work], Result]] = {
    "dense": dense,
    "sorted": by_order,
    "capacity": capacity,
    "ring_of_experts": ring,
    "all_to_all": all_to_all,
}
#: Those for which every device holds every expert while it uses them.
WHOLE = ("dense", "sorted")
#: Those that need an axis of experts.
APART = ("ring_of_experts", "all_to_all")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a layer of experts lives; without a mesh, here.

    Attributes:
      tokens: axes of B and T of what comes in.
      experts: axes of E in use. inner: axes of F.
      more: axes that T is divided over besides, of what goes out.
      rests: for every weight the axes of each dim at rest. used: the same in use,
        each the first of those at rest.
    """

    mesh: Any = None
    tokens: Tokens = Tokens()
    experts: Axes = ()
    inner: Axes = ()
    more: Axes = ()
    rests: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    used: Mapping[str, Spec] = dataclasses.field(default_factory=dict)

    def size(self, axes: Axes) -> int:
        """Into how many parts some axes divide."""
        return math.prod(self.mesh.shape[axis] for axis in axes)


class How(NamedTuple):
    """How a layer of experts is done.

    Attributes:
      name: of the verb. expert: what one expert does. mechanism: of `MECHANISMS`.
      grouped: rows times their experts' weights.
    """

    name: str
    expert: Expert
    routing: Routing
    mechanism: str
    grouped: Grouped = ragged


def run(
    how: How,
    places: Places,
    h_BTD: Array,
    router: tuple[Array, Array | None],
    weights: Mapping[str, Array],
) -> tuple[Array, dict[str, Array]]:
    """A layer of experts, and its losses and statistics (`routing.statistics`).

    Args:
      router: its weight, DE, and the bias of E by which experts are chosen or ``None``;
        both whole.
      weights: of the experts, in the dtype of arithmetic, as they rest.
    """
    local = functools.partial(_local, how, places)
    if places.mesh is None:
        return local(h_BTD, router, weights)
    came = PartitionSpec(places.tokens.batch or None, places.tokens.length or None)
    left = (*places.tokens.length, *places.more)
    nowhere = PartitionSpec()
    spread = jax.shard_map(
        local,
        mesh=places.mesh,
        in_specs=(
            came,
            jax.tree.map(lambda _: nowhere, router),
            {
                key: PartitionSpec(*(axes or None for axes in places.rests[key]))
                for key in weights
            },
        ),
        out_specs=(PartitionSpec(places.tokens.batch or None, left or None), nowhere),
        check_vma=False,
    )
    return spread(h_BTD, router, dict(weights))


def _local(
    how: How,
    places: Places,
    h_BTD: Array,
    router: tuple[Array, Array | None],
    weights: Mapping[str, Array],
) -> tuple[Array, dict[str, Array]]:
    router_DE, bias_E = router
    tokens, routing = places.tokens, how.routing
    logits_BTE = routes.logits(h_BTD, router_DE)
    affinity_BTE = routes.affinities(logits_BTE, routing)
    choice = routes.choose(affinity_BTE, bias_E, routing, tokens)
    own = h_BTD.shape[0] * h_BTD.shape[1]
    work = Work(
        h_BTD=h_BTD,
        choice=choice,
        weights={key: _used(places, key, array) for key, array in weights.items()},
        gathered={key: dim for key in weights if (dim := _gathered(places, key))},
        expert=how.expert,
        experts=router_DE.shape[1],
        axis=places.experts,
        parts=places.size(places.experts),
        tokens=tokens,
        everybody=own * places.size(tokens.all),
        routing=routing,
        grouped=how.grouped,
        ragged=_exchanges_ragged(places.mesh),
        name=how.name,
    )
    made = MECHANISMS[how.mechanism](work)
    out_BTD = made.out_TD.reshape(h_BTD.shape)
    if places.inner:
        out_BTD = _summed(out_BTD, places)
    said = routes.statistics(logits_BTE, choice, bias_E, routing, tokens)
    dropped = jnp.float32(made.dropped)
    rows = jnp.sum(choice.expert_TC < work.experts).astype(jnp.float32)
    if tokens.all:
        dropped, rows = jax.lax.psum((dropped, rows), tokens.all)
    dropped = jax.lax.stop_gradient(dropped / jnp.maximum(rows, 1.0))
    return out_BTD, {**said, "dropped": dropped}


def _summed(out_BTD: Array, places: Places) -> Array:
    """Parts of F put together, where T is divided over their axes straight to it."""
    if places.more and places.more == places.inner:
        return jax.lax.psum_scatter(
            out_BTD, places.more, scatter_dimension=1, tiled=True
        )
    return jax.lax.psum(out_BTD, places.inner)


def _exchanges_ragged(mesh: Any) -> bool:
    """XLA:CPU lacks the ragged all-to-all (as of jax 0.10)."""
    return mesh is not None and mesh.devices.flat[0].platform != "cpu"


def _used(places: Places, key: str, weight: Array) -> Array:
    """A weight as it is used, gathered from where it rests."""
    if places.mesh is None:
        return weight
    apart = _apart(places, key)
    if not any(apart):
        return weight
    whole: Any = _whole(weight, apart)
    return checkpoint_name(whole, keeping.GATHERED)


def _apart(places: Places, key: str) -> Spec:
    """The axes that each dim of a weight at rest is divided over, and in use is not."""
    return tuple(
        rest[len(used) :]
        for rest, used in zip(places.rests[key], places.used[key], strict=True)
    )


def _gathered(places: Places, key: str) -> int:
    """The dim of a weight that is gathered of most parts; 0 of one that is not."""
    if places.mesh is None:
        return 0
    ways = [places.size(axes) for axes in _apart(places, key)]
    return ways.index(max(ways))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(weight: Array, apart: Spec) -> Array:
    """Gathered along each dim; a unit to remat, which may name and drop its result."""
    for dim, axes in enumerate(apart):
        if axes:
            weight = jax.lax.all_gather(weight, axes, axis=dim, tiled=True)
    return weight


def _whole_forward(weight, apart):
    return _whole(weight, apart), None


def _whole_backward(apart, _, gradient):
    for dim, axes in enumerate(apart):
        if axes:
            gradient = jax.lax.psum_scatter(
                gradient, axes, scatter_dimension=dim, tiled=True
            )
    return (gradient,)


_whole.defvjp(_whole_forward, _whole_backward)
