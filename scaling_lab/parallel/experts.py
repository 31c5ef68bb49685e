"""Top-k routing to experts: the dense form, which every other form must equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def gates(h_BTD: Array, router_DE: Array, top_k: int) -> Array:
    """Each token's weight on every expert, zero outside its k best, summing to 1.

    Routing is decided in float32 (Switch Transformers, Fedus et al. 2021, section 2.4).
    """
    logits_BTE = jnp.einsum(
        "BTD,DE->BTE",
        h_BTD.astype(jnp.float32),
        router_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    experts = logits_BTE.shape[-1]
    best_BTC, chosen_BTC = jax.lax.top_k(logits_BTE, top_k)
    weights_BTC = jax.nn.softmax(best_BTC, -1)
    hit_BTCE = chosen_BTC[..., None] == jnp.arange(experts)[None, None, None, :]
    return jnp.sum(jnp.where(hit_BTCE, weights_BTC[..., None], 0.0), -2)


def dense(
    h_BTD: Array,
    gates_BTE: Array,
    weights: Mapping[str, Array],
    expert: Callable[..., Array],
) -> Array:
    """Every token through every expert, weighted by its gates: exact and wasteful.

    Args:
      weights: arrays with a leading E. expert: ``(h_BTD, weights) -> BTD`` for one
        expert; it closes over no arrays.
    """
    out_EBTD = jax.vmap(expert, (None, 0))(h_BTD, weights)
    return jnp.einsum("BTE,EBTD->BTD", gates_BTE.astype(h_BTD.dtype), out_EBTD)
