"""The loss of the next token, never holding all logits in one place.

Sharded over the vocabulary, each device holds its slice of the logits and only two
numbers per token cross the wires: the log-normaliser's parts and the target's logit
(Megatron-LM, Shoeybi et al. 2019, section 3). Chunked over positions, logits of one
chunk exist at a time and the backward pass makes them again.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scaling_lab.parallel.verbs import TokenLoss

Array = jax.Array

#: Logits per device that may exist at once before positions are chunked, in elements.
CHUNK_ELEMENTS = 2**26


def chunks(tokens: int, length: int, vocabulary: int) -> int:
    """The fewest equal chunks of `length` positions that keep logits small.

    Args:
      tokens: tokens per device. vocabulary: logits per token and device.
    """
    wanted = min(length, max(1, -(-tokens * vocabulary // CHUNK_ELEMENTS)))
    return next(n for n in range(wanted, length + 1) if length % n == 0)


def chunked(
    loss: Callable[[Array, Array], TokenLoss],
    hidden_BTD: Array,
    targets_BT: Array,
    n: int,
) -> TokenLoss:
    """`loss` over `n` chunks of positions, one after another, logits recomputed."""
    if n == 1:
        return loss(hidden_BTD, targets_BT)
    batch, length, width = hidden_BTD.shape
    size = length // n
    hidden = hidden_BTD.reshape(batch, n, size, width).swapaxes(0, 1)
    targets = targets_BT.reshape(batch, n, size).swapaxes(0, 1)

    def body(_, chunk):
        return None, jax.checkpoint(loss)(*chunk)

    _, parts = jax.lax.scan(body, None, (hidden, targets))
    return jax.tree.map(lambda p: p.swapaxes(0, 1).reshape(batch, length), parts)


@jax.custom_vjp
def token_loss(logits_BTV: Array, targets_BT: Array) -> TokenLoss:
    """Negative log-likelihood in float32 from logits of any dtype.

    The target's logit is picked by comparison, not by gathering: each device sees to
    its own slice of the vocabulary and nothing is scattered in the backward pass.
    """
    return _forward(logits_BTV, targets_BT)[0]


def _forward(logits_BTV, targets_BT):
    wide_BTV = logits_BTV.astype(jnp.float32)
    peak_BT = jax.lax.stop_gradient(jnp.max(wide_BTV, -1))
    total_BT = jnp.sum(jnp.exp(wide_BTV - peak_BT[..., None]), -1)
    normalizer_BT = jnp.log(total_BT) + peak_BT
    hit_BTV = _hit(targets_BT, logits_BTV.shape)
    target_BT = jnp.sum(jnp.where(hit_BTV, wide_BTV, 0.0), -1)
    counted_BT = targets_BT >= 0
    nll_BT = jnp.where(counted_BT, normalizer_BT - target_BT, 0.0)
    loss = TokenLoss(nll_BT, jnp.where(counted_BT, normalizer_BT, 0.0))
    return loss, (logits_BTV, targets_BT, normalizer_BT)


def _backward(residuals, cotangent: TokenLoss):
    logits_BTV, targets_BT, normalizer_BT = residuals
    counted_BT = targets_BT >= 0
    nll_BT1 = jnp.where(counted_BT, cotangent.nll_BT, 0.0)[..., None]
    lse_BT1 = jnp.where(counted_BT, cotangent.log_normalizer_BT, 0.0)[..., None]
    wide_BTV = logits_BTV.astype(jnp.float32)
    probability_BTV = jnp.exp(wide_BTV - normalizer_BT[..., None])
    hit_BTV = _hit(targets_BT, logits_BTV.shape)
    gradient_BTV = (nll_BT1 + lse_BT1) * probability_BTV
    gradient_BTV -= jnp.where(hit_BTV, nll_BT1, 0.0)
    return gradient_BTV.astype(logits_BTV.dtype), None


token_loss.defvjp(_forward, _backward)


def _hit(targets_BT: Array, shape: tuple[int, ...]) -> Array:
    return targets_BT[..., None] == jnp.arange(shape[-1])[None, None, :]
