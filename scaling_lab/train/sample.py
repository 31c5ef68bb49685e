"""Text from a model: prefill once, then one position at a time from its cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling_lab import models
from scaling_lab.models import ops
from scaling_lab.train.program import Program


def generate(
    program: Program,
    params: Any,
    prompt: np.ndarray,
    tokens: int,
    *,
    temperature: float = 0.8,
    seed: int = 0,
) -> np.ndarray:
    """Continues a prompt.

    Args:
      prompt: token ids, at least one. tokens: how many to add.
      temperature: 0 takes the likeliest token every time.

    Returns:
      The new token ids.

    Raises:
      ValueError: an empty prompt, or more positions than the model has.
    """
    config = program.config.model
    total = len(prompt) + tokens
    longest = getattr(config, "length", total)
    if not len(prompt) or total > longest:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {tokens} new ones: needs at least "
            f"one token of prompt and at most {longest} positions in all"
        )
    rows = program.place.layout.over(program.place.layout.spec("acts", "B"))
    dtype = program.place.compute
    cache = ops.empty_cache(config, rows, total, dtype)
    step = jax.jit(functools.partial(_next_token, program, temperature))
    key = jax.random.key(seed)
    token_BT = jnp.tile(jnp.asarray(prompt, jnp.int32)[None], (rows, 1))
    position, found = 0, []
    for index in range(tokens):
        token, cache = step(
            params, token_BT, position, cache, jax.random.fold_in(key, index)
        )
        found.append(int(token))
        position += token_BT.shape[1]
        token_BT = jnp.full((rows, 1), token, jnp.int32)
    return np.asarray(found)


def _next_token(program, temperature, params, tokens_BT, start, cache, key):
    config = program.config.model
    family = models.family_of(config)
    positions_BT = start + jnp.arange(tokens_BT.shape[1])[None]
    positions_BT = jnp.broadcast_to(positions_BT, tokens_BT.shape)
    batch = {
        "tokens_BT": tokens_BT,
        "positions_BT": positions_BT,
        "segments_BT": jnp.zeros_like(tokens_BT),
    }
    output = family.hidden(config, params, batch, program.place, cache)
    head_DV = family.head(config, params)
    logits_V = jnp.einsum(
        "D,DV->V",
        output.hidden_BTD[0, -1].astype(jnp.float32),
        head_DV.astype(jnp.float32),
    )
    if temperature == 0:
        return jnp.argmax(logits_V), output.cache
    return jax.random.categorical(key, logits_V / temperature), output.cache
