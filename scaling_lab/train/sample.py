"""Text from a model: prefill once, then one position at a time from its cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling_lab import models
from scaling_lab.config import RunConfig
from scaling_lab.layouts import Placement, scaled
from scaling_lab.models import ops
from scaling_lab.train.program import Program, make_placement, shardings_of


def generate(
    program: Program,
    params: Any,
    prompt: np.ndarray,
    tokens: int,
    *,
    temperature: float = 0.8,
    seed: int = 0,
    vocabulary: int | None = None,
) -> np.ndarray:
    """Continues a prompt.

    Args:
      prompt: token ids, at least one. tokens: how many to add.
      temperature: 0 takes the likeliest token every time.
      vocabulary: of the tokenizer, where the model's is rounded up past it.

    Returns:
      The new token ids.

    Raises:
      ValueError: an empty prompt, or more positions than the model has.
    """
    config = program.config.model
    check_room(config, len(prompt), tokens)
    total = len(prompt) + tokens
    place, params = _to_decode(program, params)
    rows = place.layout.over(place.layout.spec("acts", "B"))
    cache = ops.empty_cache(config, rows, total, place.compute)
    step = jax.jit(functools.partial(_next_logits, program.config, place))
    key = jax.random.key(seed)
    token_BT = np.tile(np.asarray(prompt, np.int32)[None], (rows, 1))
    position, found = 0, []
    for index in range(tokens):
        logits_BTV, cache = step(params, token_BT, position, cache)
        logits_V = jnp.asarray(np.asarray(logits_BTV)[0, -1, :vocabulary])
        found.append(_choose(logits_V, temperature, jax.random.fold_in(key, index)))
        position += token_BT.shape[1]
        token_BT = np.full((rows, 1), found[-1], np.int32)
    return np.asarray(found)


def check_room(model: Any, prompt: int, tokens: int) -> None:
    """Raises unless a model can continue a prompt, and has positions for both.

    Raises:
      ValueError: an empty prompt, more positions than the model has, or experts that
        choose among later tokens too.
    """
    if getattr(getattr(model, "routing", None), "choice", "token") == "expert":
        raise ValueError(
            "routing choice=expert: experts choose among later tokens too, which a "
            "sample does not have yet; say --sample 0, or train with choice=token"
        )
    total = prompt + tokens
    longest = getattr(model, "length", total)
    blocks = models.sight(model).blocks
    if blocks is not None:
        longest = min(longest, len(blocks.seen) * blocks.size)
    if not prompt or total > longest:
        raise ValueError(
            f"a prompt of {prompt} tokens and {tokens} new ones: needs at least "
            f"one token of prompt and at most {longest} positions in all"
        )


def _to_decode(program: Program, params: Any) -> tuple[Placement, Any]:
    """The placement and parameters for single positions, which nothing can divide.

    T is divided by no axis any more (context and sequence parallelism do), and the axes
    are Auto, since there is no gradient whose sharding a type would have to say.
    """
    layout = program.config.layout
    acts = _without_positions(layout.acts)
    config = dataclasses.replace(
        program.config,
        layout=dataclasses.replace(layout, acts=acts),
        axis_type="auto",
        remat="none",
    )
    place = make_placement(config)
    return place, jax.device_put(params, shardings_of(place, params))


def _without_positions(acts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_positions(axes) if isinstance(axes, Mapping) else axes
        for key, axes in acts.items()
        if key != "T"
    }


def _next_logits(
    config: RunConfig, place: Placement, params: Any, tokens_BT: Any, start: Any, cache
):
    family = models.family_of(config.model)
    positions_BT = start + jnp.arange(tokens_BT.shape[1])[None]
    batch = {
        "tokens_BT": tokens_BT,
        "positions_BT": jnp.broadcast_to(positions_BT, tokens_BT.shape),
        "segments_BT": jnp.zeros_like(tokens_BT),
    }
    output = family.hidden(config.model, params, batch, place, cache)
    head_DV = family.head(config.model, params)
    last_BTD = scaled(output.hidden_BTD[:, -1:], place.head_scale)
    logits_BTV = place.einsum("BTD,DV->BTV", last_BTD, head_DV, name="head")
    return logits_BTV.astype(jnp.float32), output.cache


def _choose(logits_V: jax.Array, temperature: float, key: jax.Array) -> int:
    if temperature == 0:
        return int(jnp.argmax(logits_V))
    return int(jax.random.categorical(key, logits_V / temperature))
