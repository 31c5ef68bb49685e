"""What a block's backward pass keeps, makes again or finds on the host, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.ad_checkpoint import Offloadable

from scaling_lab.parallel import policies

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


def remat(block: Block, policy: str, *, regather: bool, looped: bool = False) -> Block:
    """The block with what its backward pass keeps decided by name.

    Args:
      policy: ``none`` keeps everything, ``full`` keeps the block's input alone,
        ``save:a,b`` keeps the outputs of those verbs, ``recompute:a,b`` keeps
        everything but those, ``offload:a,b`` keeps theirs in the host's memory.
      regather: the backward pass gathers weights again (ZeRO-3, Rajbhandari et al.
        2020, section 5.3); else gathered ones are kept, whatever the policy.
      looped: both passes are loops of several turns. No compiler then takes what is
        made again for what was made before, and needs no barrier against it, at which
        a TPU would not gather weights while a gradient is on its way.

    Raises:
      ValueError: unknown policy.
    """
    kind = policies.parse(policy).kind
    if kind == "none" and not regather:
        return block
    names = {"dropped": (GATHERED,)} if regather else {"also": (GATHERED,)}
    chosen = _chosen(policy, **names)
    return jax.checkpoint(block, policy=chosen, prevent_cse=not looped)


def remats_of(policy: str, once_in: int, *, looped: bool) -> Remats:
    """`remat` of each layer of a group: the last one keeps what it gathered.

    The backward pass comes to the last of the layers first.

    Args:
      once_in: layers of a group; 1 if every layer keeps, 0 if none does.
      looped: as `remat` takes it.
    """
    again, keeps = (
        functools.partial(remat, policy=policy, regather=regather, looped=looped)
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
