"""Which token goes to which expert, with what weight, and what that says of the load.

Decided in float32 (Switch Transformers, Fedus et al. 2021, section 2.4) and over the
whole microbatch: sums run over every axis that tokens are divided over, so a number
here is the same on every layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling_lab.parallel.verbs import Routing

Array = jax.Array
Axes = tuple[str, ...]


class Choice(NamedTuple):
    """Where each of a device's tokens goes: its k choices, or a place for each expert.

    Attributes:
      expert_TC: the expert, or E where there is none. T counts the device's tokens.
      weight_TC: float32, zero where there is none.
    """

    expert_TC: Array
    weight_TC: Array


class Tokens(NamedTuple):
    """The axes that dims B and T of the tokens are divided over."""

    batch: Axes = ()
    length: Axes = ()

    @property
    def all(self) -> Axes:
        """All of them."""
        return (*self.batch, *self.length)


def logits(h_BTD: Array, router_DE: Array) -> Array:
    """What the router says of every token and expert, float32."""
    return jnp.einsum(
        "BTD,DE->BTE",
        h_BTD.astype(jnp.float32),
        router_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def affinities(logits_BTE: Array, routing: Routing) -> Array:
    """Each token's affinity to each expert: softmax over experts, or a sigmoid each."""
    if routing.gate == "softmax":
        return jax.nn.softmax(logits_BTE, -1)
    return jax.nn.sigmoid(logits_BTE)


def choose(
    affinity_BTE: Array, bias_E: Array | None, routing: Routing, tokens: Tokens
) -> Choice:
    """The choices of a device's tokens, in the order of their rows.

    Args:
      bias_E: added where experts are chosen and not to their weights (Wang et al. 2024,
        "Auxiliary-loss-free load balancing").
      tokens: where the microbatch's other tokens are; experts choose among them all.
    """
    if routing.choice == "expert":
        return _chosen_by_experts(affinity_BTE, routing, tokens)
    experts = affinity_BTE.shape[-1]
    affinity_TE = affinity_BTE.reshape(-1, experts)
    ranked_TE = jax.lax.stop_gradient(affinity_TE)
    if bias_E is not None:
        ranked_TE = ranked_TE + jax.lax.stop_gradient(bias_E).astype(jnp.float32)[None]
    if routing.groups > 1:
        ranked_TE = _in_best_groups(ranked_TE, routing)
    _, expert_TC = jax.lax.top_k(ranked_TE, routing.top_k)
    weight_TC = jnp.take_along_axis(affinity_TE, expert_TC, -1)
    if routing.normalise:
        total_T1 = jnp.sum(weight_TC, -1, keepdims=True)
        weight_TC = weight_TC / jnp.maximum(total_T1, 1e-20)
    return Choice(expert_TC, weight_TC * routing.scaling)


def queue(routing: Routing, tokens: int, experts: int) -> int:
    """How many tokens each expert takes where experts choose."""
    return max(1, round(tokens * routing.top_k / experts))


def most(routing: Routing, tokens: int, held: int, experts: int, everybody: int) -> int:
    """The most rows that some tokens can send to some experts.

    Args:
      tokens: how many. held: experts they are sent to. experts: of the layer.
      everybody: tokens of the microbatch.
    """
    if routing.choice == "expert":
        return held * min(tokens, queue(routing, everybody, experts))
    return tokens * min(routing.top_k, held)


def _in_best_groups(ranked_TE: Array, routing: Routing) -> Array:
    """Only the groups whose two best experts add up to most (DeepSeek-V3, 2.1.2)."""
    tokens, experts = ranked_TE.shape
    grouped_TGE = ranked_TE.reshape(tokens, routing.groups, experts // routing.groups)
    pair_TG = jnp.sum(jax.lax.top_k(grouped_TGE, 2)[0], -1)
    _, best_TG = jax.lax.top_k(pair_TG, routing.top_groups)
    kept_TG = jnp.any(
        best_TG[:, :, None] == jnp.arange(routing.groups)[None, None, :], 1
    )
    return jnp.where(kept_TG[..., None], grouped_TGE, -jnp.inf).reshape(tokens, experts)


def _chosen_by_experts(affinity_BTE: Array, routing: Routing, tokens: Tokens) -> Choice:
    """Each expert takes the tokens that want it most (Zhou et al. 2022, section 3.2).

    It looks at later tokens too, so it is no routing for a causal model's decoding.
    """
    b, t, experts = affinity_BTE.shape
    everybody_BTE = jax.lax.stop_gradient(affinity_BTE)
    for axes, dim in ((tokens.batch, 0), (tokens.length, 1)):
        if axes:
            everybody_BTE = jax.lax.all_gather(
                everybody_BTE, axes, axis=dim, tiled=True
            )
    all_b, all_t = everybody_BTE.shape[:2]
    everybody_ET = everybody_BTE.reshape(-1, experts).T
    count = queue(routing, all_b * all_t, experts)
    _, taken_EC = jax.lax.top_k(everybody_ET, count)
    chosen_ET = jnp.zeros(everybody_ET.shape, bool)
    chosen_ET = chosen_ET.at[jnp.arange(experts)[:, None], taken_EC].set(True)
    chosen_BTE = chosen_ET.T.reshape(all_b, all_t, experts)
    first = [
        jax.lax.axis_index(axes) * own if axes else 0
        for axes, own in ((tokens.batch, b), (tokens.length, t))
    ]
    own_BTE = jax.lax.dynamic_slice(chosen_BTE, (*first, 0), (b, t, experts))
    own_TE = own_BTE.reshape(-1, experts)
    weight_TE = jnp.where(own_TE, affinity_BTE.reshape(-1, experts), 0.0)
    expert_TE = jnp.where(own_TE, jnp.arange(experts)[None], experts)
    return Choice(expert_TE, weight_TE * routing.scaling)


def statistics(
    logits_BTE: Array,
    choice: Choice,
    bias_E: Array | None,
    routing: Routing,
    tokens: Tokens,
) -> Mapping[str, Array]:
    """The losses and the load of one layer, over the whole microbatch.

    Returns:
      ``loss``: the weighted balance loss (Switch Transformers, equation 4: 1 where all
      experts are used alike) and router z-loss (ST-MoE, Zoph et al. 2022, equation 5).
      ``balance``, ``z``: the same without their weights.
      ``load_E``: the share of all rows that each expert is sent, kept or not.
      ``imbalance``: of the busiest expert, over the mean. ``entropy``: of a token's
      affinities, in nats, mean. ``layers``: 1, so that sums over layers can be divided.
    """
    experts = logits_BTE.shape[-1]
    logits_TE = logits_BTE.reshape(-1, experts)

    def everywhere(x: Array) -> Array:
        return jax.lax.psum(x, tokens.all) if tokens.all else x

    hit_TCE = choice.expert_TC[..., None] == jnp.arange(experts)[None, None, :]
    count_E = everywhere(jnp.sum(hit_TCE, (0, 1)).astype(jnp.float32))
    load_E = count_E / jnp.maximum(jnp.sum(count_E), 1.0)
    count = everywhere(jnp.float32(logits_TE.shape[0]))
    shares_TE = affinities(logits_TE, routing)
    if routing.gate == "sigmoid":
        shares_TE = shares_TE / jnp.sum(shares_TE, -1, keepdims=True)
    wanted_E = everywhere(jnp.sum(shares_TE, 0)) / count
    normaliser_T = jax.nn.logsumexp(logits_TE, -1)
    z = everywhere(jnp.sum(jnp.square(normaliser_T))) / count
    balance = experts * jnp.sum(load_E * wanted_E)
    logs_TE = jnp.log(jnp.maximum(shares_TE, 1e-30))
    entropy = everywhere(-jnp.sum(shares_TE * logs_TE)) / count
    loss = routing.balance * balance + routing.z * z
    if bias_E is not None:
        # Worth nothing; its gradient is how much more than its part an expert is sent.
        shift_E = bias_E.astype(jnp.float32)
        shift_E = shift_E - jax.lax.stop_gradient(shift_E)
        loss = loss + jnp.sum((load_E * experts - 1.0) * shift_E)
    stop = jax.lax.stop_gradient
    return {
        "loss": loss,
        "balance": stop(balance),
        "z": stop(z),
        "load_E": load_E,
        "imbalance": jnp.max(load_E) * experts,
        "entropy": stop(entropy),
        "layers": jnp.float32(1.0),
    }
