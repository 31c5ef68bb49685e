"""A published row's model: its own numbers first, then what its name says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling_lab.cost.published_sizes import sizes

if TYPE_CHECKING:
    from scaling_lab.cost.published import Row


def model(row: Row) -> dict[str, Any]:
    """The model's columns.

    Raises:
      ValueError: a number that is needed is blank.
    """
    fact, given = row.known, row.number("params")
    dims = sizes(row)
    columns = _sizes(row, dims) | _experts(row, dims["d_ff"])
    columns["seq_len"] = row.needed("seq_len")
    columns["global_batch_tokens"] = row.needed("global_batch_tokens")
    columns["window"] = fact.window or 0
    columns["window_share"] = fact.window_share or 0.0
    _fit_gate(row, columns, given)
    _fit_attention(row, columns, given)
    _fit_experts(row, columns, given)
    columns["params"] = given or _count(columns)
    active = row.number("active_params")
    columns["active_params"] = active or _count(columns, active=True)
    _contradictions(columns, {"params": given, "active_params": active})
    return columns


def _contradictions(c: dict[str, Any], said: dict[str, float | None]) -> None:
    """Raises where two numbers of a model cannot both be."""
    for numbers, less, more, slack in (
        (c, "kv_heads", "n_heads", 1.0),
        (c, "top_k", "n_experts", 1.0),
        (c, "seq_len", "global_batch_tokens", 1.0),
        (said, "active_params", "params", 1.05),  # both are rounded
    ):
        small, large = numbers[less], numbers[more]
        if small is not None and large and small > slack * large:
            raise ValueError(
                f"{less}={small:.12g} is more than {more}={large:.12g}; correct one "
                "of them"
            )


def _sizes(row: Row, dims: dict[str, float]) -> dict[str, Any]:
    fact = row.known
    d_model, heads = dims["d_model"], dims["n_heads"]
    kv_heads = row.number("kv_heads") or fact.kv_heads
    if not kv_heads:
        kv_heads = heads
        row.say(f"kv_heads blank: {heads:g}, as many as heads")
    head_dim = row.number("head_dim")
    if not head_dim or (fact.attention_params and fact.head_dim):
        head_dim = fact.head_dim or d_model / heads
    vocab = row.number("vocab") or fact.vocab
    if not vocab:
        vocab = 50304
        row.say("vocab blank: 50304, GPT-2's padded")
    return {
        "layers": dims["layers"],
        "d_model": d_model,
        "n_heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "attention_params": fact.attention_params or np.nan,
        "vocab": vocab,
        "tied": float(bool(fact.tied)),
    }


def _experts(row: Row, width: float) -> dict[str, Any]:
    fact = row.known
    experts = row.number("n_experts") or fact.n_experts or 0
    if not experts:
        return {
            "n_experts": 0,
            "top_k": 0,
            "expert_d_ff": 0,
            "shared_d_ff": 0,
            "dense_layers": 0,
            "d_ff": width,
        }
    if not row.number("n_experts"):
        row.say(f"n_experts blank: {experts:g}, by the model's name")
    top_k = row.number("top_k") or fact.top_k
    if not top_k:
        top_k = 2
        row.say("top_k blank: 2")
    if fact.expert_d_ff is None:
        row.say("d_ff read as the width of one expert")
    return {
        "n_experts": experts,
        "top_k": top_k,
        "expert_d_ff": fact.expert_d_ff or width,
        "shared_d_ff": fact.shared_d_ff or 0,
        "dense_layers": fact.dense_layers or 0,
        "d_ff": fact.dense_d_ff or width,
    }


def _fit_gate(row: Row, columns: dict[str, Any], given: float | None) -> None:
    """Whether there is a gate: the row's word, the name's, or the count's."""
    word = row.text("mlp").lower()
    if word:
        columns["gated"] = float(any(w in word for w in ("glu", "swi", "gated")))
    elif row.known.gated is not None:
        columns["gated"] = float(row.known.gated)
    else:
        columns["gated"] = 1.0
        if given and not columns["n_experts"]:
            plain = _count(columns | {"gated": 0.0})
            gated = _count(columns)
            columns["gated"] = float(abs(gated - given) < abs(plain - given))
        row.say(f"mlp blank: {'gated' if columns['gated'] else 'not gated'}")
    if not columns["n_experts"] and given:
        both, one = (_count(columns | {"tied": tied}) for tied in (0.0, 1.0))
        columns["tied"] = float(abs(one - given) < abs(both - given))


def _fit_attention(row: Row, columns: dict[str, Any], given: float | None) -> None:
    """A dense model's own count says what its blocks hold, where the dims do not."""
    if not given or columns["n_experts"]:
        return
    counted = _count(columns)
    positions = columns["seq_len"] * columns["d_model"]
    if abs(counted + positions - given) < abs(counted - given):
        counted += positions  # a table of positions, which costs no FLOPs
    gap = (given - counted) / columns["layers"]
    weights = columns["attention_params"]
    if np.isnan(weights):
        weights = _formula(columns)
    if abs(given / counted - 1) > 0.05 and 0.3 < 1 + gap / weights < 3:
        columns["attention_params"] = weights + gap
        row.say(
            f"dims count {counted / 1e9:.3g}B of {given / 1e9:.3g}B parameters: the "
            "rest is priced in the blocks"
        )


def _fit_experts(row: Row, columns: dict[str, Any], given: float | None) -> None:
    """Experts narrower than ``d_ff``, where the row's own count says so.

    Raises:
      ValueError: even without experts the dims count more than ``params``.
    """
    if not given or not columns["n_experts"] or row.known.expert_d_ff is not None:
        return
    counted = _count(columns)
    if counted < 1.3 * given:
        return
    rest = _count(columns | {"expert_d_ff": 0.0})
    fitting = columns["expert_d_ff"] * (given - rest) / (counted - rest)
    if fitting < 1:
        raise ValueError(
            f"params={given:.4g}, and the dims without any expert count {rest:.4g}; "
            "correct one of them"
        )
    columns["expert_d_ff"] = round(fitting)
    row.say(
        f"experts of width {columns['expert_d_ff']}: of width {columns['d_ff']:g} they "
        f"would count {counted:.3g} parameters, not {given:.3g}"
    )


def _formula(c: dict[str, Any]) -> float:
    return c["d_model"] * c["head_dim"] * 2 * (c["n_heads"] + c["kv_heads"])


def _count(c: dict[str, Any], active: bool = False) -> float:
    """Parameters by the dims; with ``active`` those a token meets."""
    weights = c["attention_params"]
    weights = _formula(c) if np.isnan(weights) else weights
    matrices = (2 + c.get("gated", 1.0)) * c["d_model"]
    moe = c["layers"] - c["dense_layers"] if c["n_experts"] else 0
    experts = c["top_k"] if active else c["n_experts"]
    tables = (1 if c["tied"] else 2) * c["vocab"] * c["d_model"]
    blocks = c["layers"] * weights + (c["layers"] - moe) * matrices * c["d_ff"]
    routed = moe * matrices * (experts * c["expert_d_ff"] + c["shared_d_ff"])
    return blocks + routed + tables
