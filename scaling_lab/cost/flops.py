"""FLOPs per token of a training step, in every convention the field reports in.

Numbers of different conventions do not compare: at 128k positions full and causal
attention differ by 1.55×. The conventions:

* ``6N``: six per parameter (Kaplan et al. 2020, section 2.1), of experts those that a
  token meets.
* ``palm_full_attention``: 6N plus 12·L·N·H·T for attention to every position, masked or
  not (PaLM, Chowdhery et al. 2022, appendix B; MaxText before July 2025).
* ``causal_half_attention``: 6N plus 6·L·N·H·T, half of it (MaxText since).
* ``masked_attention``: 6N plus what attention's mask lets through, pair by pair.
* ``…_without_embedding``: N counts only weights that are multiplied: no embedding
  table, no norms, no biases, but the head.
"""

from __future__ import annotations

from scaling_lab import dims
from scaling_lab.config import RunConfig
from scaling_lab.cost.ledger import Entry, record
from scaling_lab.models.shape import sizes
from scaling_lab.parallel import policies


def parameters(config: RunConfig) -> int:
    """How many parameters there are."""
    return sum(leaf.size for leaf in dims.leaves(config.abstract_params).values())


def multiplied_parameters(config: RunConfig) -> int:
    """How many parameters a token is multiplied with, from the ledger."""
    return round(_matmul(config) / 2)


def per_token(config: RunConfig) -> dict[str, float]:
    """FLOPs per token of a step, forward and backward, by convention."""
    every = sizes(config.model)["active_params"]
    multiplied = multiplied_parameters(config)
    full, seen = (3 * _attention(config, full=whole) for whole in (True, False))
    return {
        "6N": 6.0 * every,
        "6N_without_embedding": 6.0 * multiplied,
        "palm_full_attention": 6.0 * every + full,
        "palm_full_attention_without_embedding": 6.0 * multiplied + full,
        "causal_half_attention": 6.0 * every + full / 2,
        "causal_half_attention_without_embedding": 6.0 * multiplied + full / 2,
        "masked_attention": 6.0 * every + seen,
        "masked_attention_without_embedding": 6.0 * multiplied + seen,
    }


def executed_per_token(config: RunConfig) -> float:
    """FLOPs per token that the hardware does: recomputation and masked scores included.

    Divided by the peak this gives HFU, which is no measure of usefulness.
    """
    entries = record(config)
    forward = sum(_full(entry) for entry in entries)
    again = sum(_full(entry) * recomputed(config.remat, entry) for entry in entries)
    return (3 * forward + again) / _tokens(entries)


def recomputed(remat: str, entry: Entry) -> float:
    """The share of a verb that the backward pass does again under a remat policy.

    Of attention whose result was kept it is the scores: they were not.
    """
    kind, names, away = policies.parse(remat)
    inside = entry.verb not in ("cross_entropy", "take")
    if kind == "none" or not inside or entry.ends:
        return 0.0
    listed = entry.name in (*names, *away)
    if kind == "save" and listed and entry.verb == "attend":
        return 0.5
    return float({"full": True, "save": not listed, "recompute": listed}[kind])


def _matmul(config: RunConfig) -> float:
    entries = record(config)
    products = [entry.flops for entry in entries if entry.verb != "attend"]
    return sum(products) / _tokens(entries)


def _attention(config: RunConfig, *, full: bool) -> float:
    entries = record(config)
    scores = [
        _full(entry) if full else entry.flops
        for entry in entries
        if entry.verb == "attend"
    ]
    return sum(scores) / _tokens(entries)


def _full(entry: Entry) -> float:
    return entry.flops / entry.density


def _tokens(entries: tuple[Entry, ...]) -> int:
    return entries[0].sizes["B"] * entries[0].sizes["T"]
