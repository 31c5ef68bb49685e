"""What a published row's free text says about recomputation and offload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaling_lab.cost.points import REMATS

if TYPE_CHECKING:
    from scaling_lab.cost.published import Row


def remat_of(
    row: Row, shape: dict[str, Any], placed: dict[str, Any], machine: dict[str, Any]
) -> dict[str, float]:
    """The policy's columns: kind, share done again, share kept, share offloaded."""
    text = row.text("remat").lower()
    offload = 0.5 if "offload" in text else 0.0
    if not text:
        fits = _kept_bytes(shape, placed) < 0.6 * machine["hbm_bytes"]
        row.say(f"remat blank: {'none' if fits else 'full'}, by the memory it needs")
        return _policy("none", 0.0, 1.0) if fits else _policy("full", 1.0, 0.1)
    if text in ("none", "no", "false", "off"):
        return _policy("none", 0.0, 1.0)
    if text.startswith(("full", "gradient_checkpointing", "true", "minimal")):
        if text.startswith("minimal"):
            return _policy("none", 0.1, 0.7, offload)
        return _policy("full", 1.0, 0.1, offload)
    if "core attention" in text:
        return _policy("selective", 0.0, 0.8, offload)
    if text.startswith("selective"):
        row.say(f"remat {text!r}: half of a block's products done again")
        return _policy("full", 0.5, 0.5, offload)
    share = _custom(text)
    row.say(f"remat {text!r}: {share:.0%} of a block's products done again")
    return _policy("full", share, 1 - share * 0.9, offload)


def _custom(text: str) -> float:
    """The share of a block's products done again, from the names that are kept."""
    kept = 0.0
    if "except_mlp" in text:
        kept += 0.35
    if "qkv" in text or "q,k,v" in text or "q/k/v" in text:
        kept += 0.12
    if "mlpwo" in text:
        kept += 0.0
    if "out_proj" in text:
        kept += 0.08
    if "context" in text:
        kept += 0.1
    return max(1 - kept, 0.0)


def _policy(
    kind: str, again: float, kept: float, offload: float = 0.0
) -> dict[str, float]:
    return {
        "remat": float(REMATS.index(kind)),
        "recompute": again,
        "kept": kept,
        "offload": offload,
    }


def _kept_bytes(shape: dict[str, Any], placed: dict[str, Any]) -> float:
    """Activations of one device without remat (Korthikanti et al. 2022, table 2)."""
    tokens = placed["microbatch_seqs"] * shape["seq_len"] / placed["context"]
    width = shape["d_ff"]
    if shape["n_experts"]:
        width = shape["top_k"] * shape["expert_d_ff"] + shape["shared_d_ff"]
    per = 14 * shape["d_model"] + 2 * (2 + shape["gated"]) * width
    live = shape["layers"]  # one stage's layers, of as many microbatches as stages
    return tokens * per * live / placed["tensor"]
