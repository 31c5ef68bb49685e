"""Shapes of models that tables name and do not describe.

Published rows leave out what everybody in their field knows: how many experts, how
wide, which layers are local. Each entry is the model's own ``config.json`` or its
paper; a row's own numbers win over it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Known:
    """What a name says about a model; ``None`` where the row must say it.

    Attributes:
      name: pattern of the name, lower case, without separators.
      n_experts: routed experts. top_k: of them a token visits.
      expert_d_ff: width of one. shared_d_ff: of the shared ones together.
      dense_layers: leading dense blocks. dense_d_ff: their width.
      head_dim: of queries and values, their mean where they differ.
      attention_params: weights of one block's attention, where it is latent.
      kv_heads: key-value heads.
      window: keys a local layer sees. window_share: of the layers that are local.
      gated: whether the feed-forward has a gate.
      tied: whether embedding and head are one matrix.
      vocab: vocabulary.
      sinks: whether scores have learned sinks.
    """

    name: str
    n_experts: int | None = None
    top_k: int | None = None
    expert_d_ff: int | None = None
    shared_d_ff: int | None = None
    dense_layers: int | None = None
    dense_d_ff: int | None = None
    head_dim: float | None = None
    attention_params: float | None = None
    kv_heads: int | None = None
    window: int | None = None
    window_share: float | None = None
    gated: bool | None = None
    tied: bool | None = None
    vocab: int | None = None
    sinks: bool = False


def latent(
    d_model: int, heads: int, query_rank: int | None, rank: int = 512
) -> dict[str, Any]:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): 128 + 64 wide queries.

    Its weights, and the mean width of scores (192) and values (128).
    """
    query = d_model * heads * 192
    if query_rank:
        query = d_model * query_rank + query_rank * heads * 192
    keys = d_model * (rank + 64) + rank * heads * (128 + 128)
    return {
        "attention_params": query + keys + heads * 128 * d_model,
        "head_dim": 160.0,
    }


MODELS = (
    Known("mixtral8x7b", 8, 2, 14336, gated=True),
    Known("mixtral8x22b", 8, 2, 16384, gated=True),
    Known(
        r"deepseek(v)?3.*|deepseekr1.*",
        256,
        8,
        2048,
        2048,
        3,
        18432,
        gated=True,
        **latent(7168, 128, 1536),
    ),
    Known(
        r"deepseek(v)?2(16b|lite.*)",
        64,
        6,
        1408,
        2 * 1408,
        1,
        10944,
        gated=True,
        **latent(2048, 16, None),
    ),
    Known(
        r"deepseek(v)?2(236b)?",
        160,
        6,
        1536,
        2 * 1536,
        1,
        12288,
        gated=True,
        **latent(5120, 128, 1536),
    ),
    Known(
        r"kimik2.*",
        384,
        8,
        2048,
        2048,
        1,
        18432,
        gated=True,
        **latent(7168, 64, 1536),
    ),
    Known(
        r"gptoss120b",
        128,
        4,
        2880,
        head_dim=64,
        window=128,
        window_share=0.5,
        gated=True,
        sinks=True,
    ),
    Known(
        r"gptoss20b",
        32,
        4,
        2880,
        head_dim=64,
        window=128,
        window_share=0.5,
        gated=True,
        sinks=True,
    ),
    Known(r"qwen3.*30ba3b.*", 128, 8, 768, head_dim=128, kv_heads=4, gated=True),
    Known(r"qwen3.*235ba22b.*", 128, 8, 1536, head_dim=128, kv_heads=4, gated=True),
    Known(r"qwen3480ba35b|qwen3coder480b.*", 160, 8, 2560, head_dim=128, gated=True),
    Known(r"llama4scout.*", 16, 1, 8192, 8192, gated=True),
    Known(r"llama4maverick.*", 128, 1, 8192, 8192, gated=True),
    Known(r"glm45(355b.*)?", 160, 8, 1536, 1536, 3, 12288, head_dim=128, gated=True),
    Known(r"glm45air.*", 128, 8, 1408, 1408, 1, 10944, head_dim=128, gated=True),
    Known(r"olmoe.*", 64, 8, 1024, gated=True),
    Known(r"dbrx.*", 16, 4, 10752, gated=True),
    Known(r"grok1.*", 8, 2, 32768, gated=True),
    Known(
        r"gemma4.*26b.*",
        128,
        8,
        704,
        2112,
        head_dim=256,
        window=1024,
        window_share=5 / 6,
        gated=True,
        tied=True,
    ),
    Known(
        r"gemma3.*",
        head_dim=256,
        window=1024,
        window_share=5 / 6,
        gated=True,
        tied=True,
    ),
    Known(
        r"gemma2.*", head_dim=256, window=4096, window_share=0.5, gated=True, tied=True
    ),
    Known(r"gemma.*", head_dim=256, gated=True, tied=True),
    Known(r"qwen3.*", head_dim=128, gated=True),
    Known(r"llama3.*", kv_heads=8, gated=True, vocab=128256),
    Known(r"llama270b", kv_heads=8, gated=True, vocab=32000),
    Known(r"llama2?.*", gated=True, vocab=32000),
    Known(r".*gpt.*|mpt.*|mtnlg.*|opt.*|bloom.*|megatron.*", gated=False, tied=True),
    Known(r"palm.*", gated=True, tied=True),
)


def known(model: str) -> Known | None:
    """What is known of a model by its name, or ``None``."""
    name = re.sub(r"[^a-z0-9]", "", model.lower())
    for entry in MODELS:
        if re.fullmatch(entry.name, name):
            return entry
    return None
