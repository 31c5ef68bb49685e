"""What a published row's free text says about recomputation and offload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling_lab.cost.points import REMATS, STACKS

if TYPE_CHECKING:
    from scaling_lab.cost.published import Row

#: Names that policies keep (MaxText's words), and the products they stand for.
_NAMES = {
    "qkv": "qkv",
    "q,k,v": "qkv",
    "query_proj": "qkv",
    "out_proj": "out",
    "context": "scores",
    "mlpwi": "up",
}
#: Chips whose host's memory is a coherent link away: recipes offload to it and do
#: nothing again.
_COHERENT = ("gb200", "gb300", "gh200")
#: Policies by name: what they keep.
_POLICIES = {
    "save_dot_with_context_except_mlp": ("qkv", "out", "scores"),
    "save_dot_except_mlp": ("qkv", "out"),
    "save_qkv_proj": ("qkv",),
    "qkv_proj_offloaded": ("qkv",),
    "save_out_proj": ("out",),
    "minimal_flash": ("qkv", "out", "scores", "up"),
    "minimal_with_context": ("qkv", "out", "scores", "up"),
    "minimal": ("qkv", "out", "up"),
}


def remat_of(
    row: Row, shape: dict[str, Any], placed: dict[str, Any], machine: dict[str, Any]
) -> dict[str, float]:
    """The policy's columns: kind, shares done again, share kept, share offloaded."""
    text = row.text("remat").lower()
    xla = placed["stack"] == STACKS.index("xla")
    offload = 0.5 if "offload" in text else 0.0
    if not text:
        fits = _kept_bytes(shape, placed) < 0.6 * machine["hbm_bytes"]
        if not fits and machine["chip"] in _COHERENT:
            row.say("remat blank: offloaded, since its host's memory is near")
            return _policy("none", 0.0, 1.0, 0.6)
        row.say(f"remat blank: {'none' if fits else 'full'}, by the memory it needs")
        text = "none" if fits else "full"
    if text in ("none", "no", "false", "off"):
        return _policy("none", 0.0, 1.0)
    if "core attention" in text:
        return _policy("selective", 0.0, 0.8, offload)
    if text.startswith("selective"):
        row.say(f"remat {text!r}: half of a block done again")
        return _policy("full", 0.5, 0.5, offload, scores=0.5)
    kept = _kept(text)
    again = _share(shape, kept, xla)
    if not text.startswith(("full", "gradient_checkpointing", "true")):
        row.say(f"remat {text!r}: {again:.0%} of a block's products done again")
    scores = 0.0 if "scores" in kept else 1.0
    return _policy("full", again, max(0.1, 1 - again), offload, scores)


def _kept(text: str) -> set[str]:
    """The products whose results a policy keeps."""
    for name, products in _POLICIES.items():
        if name in text:
            return set(products)
    if text.startswith("full") or "/" in text:
        return set()
    return {product for name, product in _NAMES.items() if name in text}


def _share(shape: dict[str, Any], kept: set[str], xla: bool) -> float:
    """The share of a block's products done again.

    XLA never does the last one again: its result is the next block's input, which is
    kept. PyTorch's checkpoint runs the whole block.
    """
    width, inner = shape["d_model"], shape["n_heads"] * shape["head_dim"]
    keys = shape["kv_heads"] * shape["head_dim"]
    ff = shape["d_ff"]
    if shape["n_experts"]:
        ff = shape["top_k"] * shape["expert_d_ff"] + shape["shared_d_ff"]
    weights = {
        "qkv": width * (inner + 2 * keys),
        "out": width * inner,
        "up": width * ff * (1 + shape["gated"]),
        "down": width * ff,
    }
    total = sum(weights.values())
    gone = kept | ({"down"} if xla else set())
    return sum(w for name, w in weights.items() if name not in gone) / total


def _policy(
    kind: str,
    again: float,
    kept: float,
    offload: float = 0.0,
    scores: float = np.nan,
) -> dict[str, float]:
    return {
        "remat": float(REMATS.index(kind)),
        "recompute": again,
        "scores_again": scores,
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
