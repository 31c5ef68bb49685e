"""A model's sizes as a cost model wants them, read off its config and its weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from scaling_lab import dims, models

#: Dims that only weights of attention have.
_ATTENTION = set("NKQR")
#: How the norm of what a block's last product gives is called.
_AFTER = "ffn_after_norm_"


@functools.lru_cache(64)
def sizes(config: Any) -> Mapping[str, Any]:
    """Sizes of a family's `Config`, under the names of `cost.points.Points`.

    ``latent`` is the number of weights of one latent attention, ``None`` where heads
    say it all; ``head_dim`` is then the mean of a query's and a value's width.
    """
    init = models.family_of(config).init
    made = dims.leaves(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    count = sum(leaf.size for leaf in made.values())
    names = {path: path.rpartition("/")[2] for path in made}
    routed = {p: leaf for p, leaf in made.items() if _of_experts(names[p])}
    inner = {
        (dims.stem(names[path]), path in routed): leaf.shape[-2]
        for path, leaf in made.items()
        if dims.letters(names[path]).endswith("FD")
    }
    top_k = config.routing.top_k if routed else 0
    experts = config.E if routed else 0
    idle = sum(leaf.size - leaf.size * top_k // experts for leaf in routed.values())
    layers = config.L
    sparse = layers - _dense(made, routed) if routed else 0
    latent = getattr(config, "R", None) is not None
    head = (config.H + config.P + config.U) // 2 if latent else config.H
    sight = models.sight(config)
    return {
        "layers": layers,
        "d_model": config.D,
        "n_heads": config.N,
        "kv_heads": config.K,
        "head_dim": head,
        "d_ff": config.F if sparse < layers else 0,
        "gated": any(name.startswith("gate_") for name in names.values()),
        "vocab": config.V,
        "tied": config.tied,
        "n_experts": experts,
        "top_k": top_k,
        "expert_d_ff": inner.get(("down", True), 0),
        "shared_d_ff": inner.get(("shared_down", False), 0),
        "dense_layers": layers - sparse if routed else 0,
        "window": sight.keys or 0,
        "window_share": sight.share(layers),
        "ends_in_norm": any(name.startswith(_AFTER) for name in names.values()),
        "latent": _attention(made) if latent else None,
        "params": count,
        "active_params": count - idle,
    }


def _of_experts(name: str) -> bool:
    letters = dims.letters(name).removeprefix("L")
    return letters.startswith("E") and len(letters) > 1


def _dense(made: Mapping[str, Any], routed: Mapping[str, Any]) -> int:
    """Layers of the stacks that have no experts; of like layers there may be several
    (`models.runs`), and a second head's layer is none of them."""
    depths = {
        path.partition("/")[0]: leaf.shape[0]
        for path, leaf in made.items()
        if dims.letters(path.rpartition("/")[2]).startswith("L")
    }
    stacks = {path.partition("/")[0] for path in routed}
    return sum(depth for stack, depth in depths.items() if stack not in stacks)


def _attention(made: Mapping[str, Any]) -> int:
    """Weights of one layer's attention, alike in all of them."""
    return sum(
        leaf.size // leaf.shape[0]
        for path, leaf in made.items()
        if path.startswith("layers/")
        and _ATTENTION & set(dims.letters(path.rpartition("/")[2]))
    )
