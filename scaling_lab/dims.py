"""The alphabet: one letter per dim, one meaning in the whole lab.

An array's name ends in its dims (`gate_DF`, `scores_BNTS`), and every letter is
there: ``len(letters) == ndim`` or it raises. Nothing is inferred from trailing
letters, because a factored optimizer state or a stacked norm scale would be misread.
The letters are those of "How to Scale Your Model" (jax-ml/scaling-book).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALPHABET: dict[str, str] = {
    "B": "batch",
    "T": "query positions",
    "S": "key positions",
    "D": "model width",
    "F": "feed-forward width",
    "N": "query heads",
    "K": "key-value heads",
    "G": "query heads per key-value head",
    "H": "head width",
    "V": "vocabulary",
    "L": "layers",
    "E": "experts",
    "C": "expert capacity",
    "Q": "query compression rank",
    "R": "key-value compression rank",
    "P": "rotary width",
    "U": "value head width",
    "M": "microbatches",
    "Z": "stages",
    "I": "place inside a block of positions",
}

#: The axes a mesh may have, in the order meshes are built: slowest links first.
AXES: tuple[str, ...] = ("data", "stage", "expert", "fsdp", "context", "tensor")

#: Nested plain dicts of arrays, keyed by names that end in their dims.
Params = Mapping[str, Any]


def letters(name: str) -> str:
    """The dims at the end of a name: ``"gate_LDF" -> "LDF"``.

    Raises:
      ValueError: the name carries no dims, an unknown letter, or a letter twice.
    """
    stem, _, tail = name.rpartition("_")
    if not stem:
        raise ValueError(
            f"{name!r} carries no dims; an array's name ends in them, as 'gate_DF'"
        )
    unknown = [letter for letter in tail if letter not in ALPHABET]
    if unknown:
        raise ValueError(
            f"{name!r} ends in unknown dim(s) {unknown}; the alphabet is "
            f"{''.join(ALPHABET)}"
        )
    if len(set(tail)) != len(tail):
        raise ValueError(f"{name!r} has a dim twice; each letter names one dim")
    return tail


def stem(name: str) -> str:
    """The name without its dims: ``"gate_LDF" -> "gate"``."""
    letters(name)
    return name.rpartition("_")[0]


def check(name: str, shape: Sequence[int]) -> str:
    """The letters of `name`, after checking that there is one for every dim.

    Raises:
      ValueError: the number of letters is not the number of dims.
    """
    dims = letters(name)
    if len(dims) != len(shape):
        raise ValueError(
            f"{name!r} names {len(dims)} dim(s) {dims!r} but the array has shape "
            f"{tuple(shape)}; rename it or fix the array"
        )
    return dims


def stacked(name: str) -> str:
    """The name of a per-layer parameter once its layers are stacked: ``gate_LDF``."""
    return f"{stem(name)}_L{letters(name)}"


def unstacked(name: str) -> str:
    """The inverse of `stacked`.

    Raises:
      ValueError: the name's dims do not begin with ``L``.
    """
    dims = letters(name)
    if not dims.startswith("L"):
        raise ValueError(
            f"{name!r} is not stacked over layers: its dims lack a first L"
        )
    return f"{stem(name)}_{dims[1:]}"


def sizes(config: Any) -> dict[str, int]:
    """Letter -> size, of the fields of a model's config that are sizes of dims."""
    return {
        name: value
        for name, value in vars(config).items()
        if name in ALPHABET and value is not None
    }


def keys(path: Any) -> list[str]:
    """The words of a tree path, dict keys and field names alike; indices are ``""``."""
    return [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]


def leaves(params: Params, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one flat dict: ``{"layers/gate_LDF": array, …}``."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= leaves(value, f"{path}/")
        else:
            flat[path] = value
    return flat
