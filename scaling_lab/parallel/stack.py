"""Running the layers: scanned or unrolled, with what the backward pass may keep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import Offloadable

from scaling_lab import dims
from scaling_lab.parallel import policies, recompute
from scaling_lab.parallel.verbs import Batch, Segment

Array = jax.Array
#: What moves an array without changing it (`_gather` of a weight is a custom_vjp).
MOVES = ("sharding_constraint", "reshard", "custom_vjp_call")
#: What makes a verb's result: the product and adding its bias, or a kernel and what
#: puts its result in shape.
MAKES = ("dot_general", "add", "pallas_call", "slice", "squeeze", "transpose")

Block = Callable[..., tuple[Array, Any, Any]]
#: `remat` of each layer of a group, which may keep different things.
Remats = Sequence[Callable[[Block], Block]]

#: `checkpoint_name` of a weight after it was gathered for use.
GATHERED = "gathered_weight"
#: And of what a layer of a pipeline's stage is given.
INPUT = "layer_input"


def remat(block: Block, policy: str, *, regather: bool) -> Block:
    """The block with what its backward pass keeps decided by name.

    Args:
      policy: ``none`` keeps everything, ``full`` keeps the block's input alone,
        ``save:a,b`` keeps the outputs of those verbs, ``recompute:a,b`` keeps
        everything but those, ``offload:a,b`` keeps theirs in the host's memory.
      regather: the backward pass gathers weights again (ZeRO-3, Rajbhandari et al.
        2020, section 5.3); else gathered ones are kept, whatever the policy.

    Raises:
      ValueError: unknown policy.
    """
    kind = policies.parse(policy).kind
    if kind == "none" and not regather:
        return block
    if regather:
        return jax.checkpoint(block, policy=_chosen(policy, dropped=(GATHERED,)))
    return jax.checkpoint(block, policy=_chosen(policy, also=(GATHERED,)))


def remats_of(policy: str, once_in: int) -> Remats:
    """`remat` of each layer of a group: the last one keeps what it gathered.

    The backward pass comes to the last of the layers first.

    Args:
      once_in: layers of a group; 1 if every layer keeps, 0 if none does.
    """
    again, keeps = (
        functools.partial(remat, policy=policy, regather=regather)
        for regather in (True, False)
    )
    return (*[again] * (once_in - 1), keeps) if once_in else (again,)


def of_chunk(policy: str) -> Callable[..., Any]:
    """What is kept of a chunk of layers for every tick: by name, and no weights."""
    return _chosen(policy, also=(INPUT,), dropped=(GATHERED,), moves=("transpose",))


def _chosen(
    policy: str,
    *,
    also: tuple[str, ...] = (),
    dropped: tuple[str, ...] = (),
    moves: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """A policy for `jax.checkpoint`.

    Args:
      also: names kept too, where names say what is kept.
      dropped: names dropped too, where they say what is not. moves: what moves an
        array there, beside `MOVES`.
    """
    kind, listed, away = policies.parse(policy)
    if kind in ("full", "save"):
        return functools.partial(_kept, (*also, *listed), away)
    makes = MAKES if kind == "recompute" else ()
    return all_but((*listed, *dropped), (*MOVES, *moves, *makes))


def with_residual(policy: str, residual: str) -> str:
    """The policy for an attention that names what it keeps itself.

    To keep the result alone would spare nothing: its kernel would run again for the
    normalisers. So what is kept, or dropped, with the verb is what the kernel names.
    """
    kind, listed, away = policies.parse(policy)
    attends = [name for name in listed if name.rpartition("/")[2] == "attend"]
    if not (residual and attends):
        return policy
    if kind == "save":
        listed = tuple(name for name in listed if name not in attends)
    return policies.Policy(kind, (*listed, residual), away).text


def all_but(names: tuple[str, ...], unnamed: tuple[str, ...]) -> Callable[..., bool]:
    """Keeps everything except what is named, and what makes it before it has its name.

    What a verb returns has a name and is kept there; were the product or the
    constraint under that name kept, dropping the name would drop nothing.
    """

    def policy(primitive: Any, *_: Any, **params: Any) -> bool:
        if primitive.name in unnamed:
            return False
        return not named(names, primitive, **params)

    return policy


def _kept(
    names: tuple[str, ...],
    away: tuple[str, ...],
    primitive: Any,
    *_: Any,
    **params: Any,
) -> bool | Offloadable:
    """Whether a result is kept, and where: here, or by other names on the host."""
    if away and primitive.name == "name" and params["name"] in away:
        return Offloadable(src="device", dst="pinned_host")
    return named(names, primitive, **params)


def named(names: tuple[str, ...], primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether a result has one of the names, or a kernel of that name makes it."""
    if primitive.name == "name":
        return params["name"] in names
    return primitive.name in names


def scan(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    cache: Any,
    *,
    remats: Remats,
    together: int = 1,
):
    """The layers as one loop: compiled once, whatever the depth.

    Args:
      remats: where there are several, as many layers stand in one turn.
      together: layers in one turn, at least. What one moves (weights, results from the
        host) then hides behind what another computes, which a compiler sees no other
        way.
    """
    if len(remats) > 1 and cache is None:
        turns = max(1, together // len(remats))
        return _scan_groups(block, segment, x_BTD, per_batch, (remats, turns))
    block = remats[-1](block)

    def body(x_BTD, layer):
        params, cache = layer
        x_BTD, aux, cache = block(params, x_BTD, per_batch, cache)
        return x_BTD, (aux, cache)

    layers = (per_layer(segment.params), cache)
    x_BTD, (aux, cache) = jax.lax.scan(body, x_BTD, layers, unroll=together)
    return x_BTD, _total(aux), cache


def _scan_groups(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    how: tuple[Remats, int],
):
    """The layers in groups that stand in one turn, each layer under its own `remat`.

    Args:
      how: one `remat` for each layer of a group, and how many groups are in a turn.
    """
    remats, turns = how
    size = len(remats)

    def one_of(i: int) -> Block:
        def layer(params: Any, *inputs: Any) -> tuple[Array, Any, Any]:
            return block(_pick(*params, i), *inputs)

        return remats[i](layer)

    blocks = [one_of(i) for i in range(size)]

    def body(x_BTD, groups):
        still, group = groups
        auxes = []
        for one, own in zip(blocks, unstack(group, size), strict=True):
            x_BTD, aux, _ = one((still, own), x_BTD, per_batch, None)
            auxes.append(aux)
        return x_BTD, _total(_stack(auxes))

    groups = jax.tree.map(
        lambda a: a.reshape(-1, size, *a.shape[1:]), per_layer(segment.params)
    )
    both = (jax.lax.stop_gradient(groups), groups)
    x_BTD, aux = jax.lax.scan(body, x_BTD, both, unroll=turns)
    return x_BTD, _total(aux), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(stacked: Any, depth: int) -> list[Any]:
    """A tree of ``L…`` arrays as a list of trees.

    Its gradient stacks. The gradient of indexing would pad every layer's gradient to
    the full stack and add them up, depth times the traffic.
    """
    return [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(depth)]


def _unstack_forward(stacked, depth):
    return unstack(stacked, depth), None


def _unstack_backward(depth, _, cotangents):
    del depth
    return (_stack(cotangents),)


unstack.defvjp(_unstack_forward, _unstack_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pick(group: Any, own: Any, i: int) -> Any:
    """Layer i of a group, whose gradient goes to `own`, which is that layer too.

    So a backward pass that does the layer again reads the group, which its loop has
    anyway. Did it read `own`, a copy of the model would be kept for it; XLA drops what
    is kept and not read.
    """
    del own
    return jax.tree.map(lambda a: a[i], group)


def _pick_forward(group, own, i):
    return _pick(group, own, i), None


def _pick_backward(i, _, cotangent):
    del i
    return None, cotangent


_pick.defvjp(_pick_forward, _pick_backward)


def scan_inputs(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    rest: Callable[[Any], Any],
):
    """`scan` that keeps the layers' inputs alone; see `recompute.scan`."""
    gathered = jax.checkpoint_policies.save_only_these_names(GATHERED)
    layers = recompute.Layers(block, jax.checkpoint(block, policy=gathered), rest)
    stacked = per_layer(segment.params)
    scanned: Any = recompute.scan(layers, stacked, x_BTD, per_batch)
    x_BTD, aux = scanned
    return x_BTD, aux, None


def unroll(
    block: Block,
    segment: Segment,
    x_BTD: Array,
    per_batch: Batch,
    cache: Any,
    *,
    remats: Remats,
):
    """The layers written out: no loop carries, at the price of compile time."""
    depth = len(jax.tree.leaves(segment.params)[0])
    layers: Any = unstack(per_layer(segment.params), depth)
    caches = [jax.tree.map(lambda c, i=i: c[i], cache) for i in range(depth)]
    auxes, blocks = [], [wrap(block) for wrap in remats]
    for i, params in enumerate(layers):
        one = blocks[i % len(blocks)]
        x_BTD, aux, caches[i] = one(params, x_BTD, per_batch, caches[i])
        auxes.append(aux)
    return x_BTD, _total(_stack(auxes)), _stack(caches)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def per_layer(params: Mapping[str, Any]) -> dict[str, Any]:
    return {dims.unstacked(name): array for name, array in params.items()}


def _total(aux: Any) -> Any:
    return jax.tree.map(lambda a: jnp.sum(a, 0), aux)
