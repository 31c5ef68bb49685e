"""muP: a learning rate tuned at one width holds at another.

Yang et al. 2022, "Tensor Programs V" (arXiv 2203.03466), table 8, for Adam. What a
parameter is is read off its name: it reads the dims before its last ones and writes
those, and a dim is wide if it grows with the model (D F N K H Q R P U) or not (V E T L
I). With r the ratio of its fan-in to the base model's:

| a parameter | reads | writes | first draw | learning rate | multiplier |
|---|---|---|---|---|---|
| embeddings, norms, biases | narrow | wide | 1 | 1 | 1 |
| hidden matrices | wide | wide | r^-1/2 | 1/r | 1 |
| the head, tied or not | wide | narrow | 1 | 1 | 1/r, of the logits |
| routers | wide | narrow | 1/r | 1/r | 1 |

The last row is the head's by the paper's lemma J.1, which moves the multiplier into the
first draw and the learning rate, and so leaves the verb that routes alone. Scores of
attention are divided by H, not its root (definition 4.1), and are the base's at its H.
At the base's own sizes every factor is 1. Weight decay is not divided: it is the
learning rate's, as in a decoupled AdamW whose decay is the same for all widths.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax

from scaling_lab import dims, models
from scaling_lab.names import one_of

#: Dims that grow with a model's width.
WIDE = set("DFNKHQRPUG")
#: Optimizers whose step is as large whatever the gradient's size, as the table wants.
OPTIMIZERS = ("adamw", "lion")
#: Outside the layers what is multiplied by the head's rule, not by its own name.
_HEAD = "head_DV"


def reads(name: str) -> str:
    """The dims of one matrix that are summed over: ``out_LNHD -> NH``; "" of a vector.

    Heads come with their width, every other dim alone.
    """
    letters = dims.letters(name).removeprefix("L")
    if letters[:1] == "E" and len(letters) > 1:
        letters = letters[1:]
    if len(letters) < 2 or "bias" in dims.stem(name):
        return ""
    return letters[:2] if letters[0] in "NK" and len(letters) > 2 else letters[:1]


def kind(name: str) -> str:
    """``input`` (vectors too), ``hidden`` or ``output``, by a parameter's name."""
    read = reads(name)
    if not read or not WIDE & set(read):
        return "input"
    written = dims.letters(name).removeprefix("L").rpartition(read)[2]
    return "hidden" if WIDE & set(written) else "output"


def check(model: Any, base: Any, optimizer: str) -> None:
    """Raises unless a model can be parametrised from a base.

    Raises:
      ValueError: another family or other parts, or an optimizer the table is not for.
    """
    if type(model) is not type(base):
        ours, theirs = (
            models.family_of(m).__name__.split(".")[-1] for m in (model, base)
        )
        raise ValueError(f"mup: the base is a {theirs}, the model a {ours}")
    if optimizer not in OPTIMIZERS:
        one_of("optimizer of mup", optimizer, OPTIMIZERS)
    if getattr(model, "embed_width", None) != getattr(base, "embed_width", None):
        raise ValueError(
            f"mup: embeddings are multiplied by the root of embed_width, "
            f"{model.embed_width or model.D} of the model and "
            f"{base.embed_width or base.D} of the base: give both the base's"
        )
    lost = set(_fans(model)) ^ set(_fans(base))
    if lost and model.L == base.L:
        raise ValueError(
            f"mup: model and base differ in parts, not in sizes: {sorted(lost)[0]}"
        )


def initial(params: Mapping[str, Any], model: Any, base: Any) -> Any:
    """Fresh parameters as muP draws them."""
    factors = {"input": 0.0, "hidden": -0.5, "output": -1.0}

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        where = "/".join(dims.keys(path))
        power = factors[_kind(where)]
        return leaf * ratio(where, model, base) ** power if power else leaf

    return jax.tree.map_with_path(one, dict(params))


def rates(model: Any, base: Any) -> dict[str, float]:
    """Of every parameter's path what the learning rate is multiplied by."""
    return {
        path: 1.0 if _kind(path) == "input" else 1 / ratio(path, model, base)
        for path in _fans(model)
    }


def multipliers(model: Any, base: Any) -> dict[str, float]:
    """What scores of attention and logits are multiplied by: ``attend``, ``head``."""
    own, theirs = (getattr(m, "cached_width", m.H) for m in (model, base))
    return {"attend": math.sqrt(theirs / own), "head": base.D / model.D}


def ratio(path: str, model: Any, base: Any) -> float:
    """A parameter's fan-in over the base's."""
    return _fans(model)[path] / _fan_of(path, base)


def _kind(path: str) -> str:
    name = path.rpartition("/")[2]
    return "input" if name == _HEAD else kind(name)


def _fan_of(path: str, base: Any) -> int:
    """The base's fan-in; with layers in other runs, that of the first so named."""
    fans = _fans(base)
    if path in fans:
        return fans[path]
    run, _, name = path.rpartition("/")
    same = [fan for p, fan in fans.items() if p.rpartition("/")[2] == name and "/" in p]
    if not same or not run:
        raise ValueError(f"mup: the base has no {path}")
    return same[0]


@functools.lru_cache(maxsize=64)
def _fans(model: Any) -> dict[str, int]:
    """Numbers that each output of a parameter is a sum of, by its path."""
    init = models.family_of(model).init
    made = dims.leaves(jax.eval_shape(lambda: init(model, jax.random.key(0))))
    found = {}
    for path, leaf in made.items():
        name = path.rpartition("/")[2]
        sizes = dict(zip(dims.letters(name), leaf.shape, strict=True))
        found[path] = math.prod(sizes[letter] for letter in reads(name))
    return found
