"""A Hugging Face ``config.json`` as a shape, its parameters counted as the library's
modules have them (transformers, ``modeling_<type>.py``)."""

from __future__ import annotations

import dataclasses
from typing import Any

from scaling_lab.plan.hf_fields import GPT_LIKE, field, filled

#: One layer of so many sees every key, where a file does not list its layers.
_PERIOD = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2}
_SLIDING = ("mistral", "mixtral", "phi3", *_PERIOD)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a model.

    Attributes:
      name: what people call its family.
      head_dim: width of a head; of latent attention the mean of its query-key and its
        value width, so that attention's FLOPs are right.
      gated: whether the feed-forward has a gate.
      n_experts: routed experts of a layer; 0 in a dense model. top_k: of them visited.
      expert_d_ff: width of one. shared_d_ff: of the shared ones together.
      dense_layers: leading layers without experts.
      window: keys that a local layer sees, 0 for all; window_share: of such layers.
      params: all of them. active_params: those that a token meets.
      latent: parameters of one latent attention; ``None`` where heads say it all.
      length: longest sequence it has positions for; ``None`` where any.
      config: a family's `Config` of ours, where one is the same model.
    """

    name: str
    layers: int
    d_model: int
    n_heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    gated: bool
    vocab: int
    tied: bool
    params: int
    active_params: int
    n_experts: int = 0
    top_k: int = 0
    expert_d_ff: int = 0
    shared_d_ff: int = 0
    dense_layers: int = 0
    window: int = 0
    window_share: float = 0.0
    ends_in_norm: bool = False
    latent: int | None = None
    length: int | None = None
    config: Any = None


def read(data: dict[str, Any]) -> Shape:
    """The shape that a ``config.json`` describes.

    Raises:
      ValueError: a type that is not known, or a field that is missing.
    """
    data, kind = filled(data)
    return _gpt(data, kind) if kind in GPT_LIKE else _llama(data, kind)


def _gpt(data: dict[str, Any], kind: str) -> Shape:
    width = field(data, "n_embd", "hidden_size")
    layers = field(data, "n_layer", "num_hidden_layers")
    heads = field(data, "n_head", "num_attention_heads")
    vocab = field(data, "vocab_size")
    positions = data.get("n_positions") or data.get("max_position_embeddings")
    inner = data.get("n_inner") or data.get("intermediate_size") or 4 * width
    tied = data.get("tie_word_embeddings", kind == "gpt2")
    # Weights and biases of four projections and two products, two norms with biases.
    block = 4 * width**2 + 4 * width + 2 * width * inner + inner + width + 4 * width
    ends = vocab * width * (1 if tied else 2) + 2 * width
    learned = positions * width if kind == "gpt2" and positions else 0
    count = layers * block + ends + learned
    return Shape(
        name=kind,
        layers=layers,
        d_model=width,
        n_heads=heads,
        kv_heads=heads,
        head_dim=even("hidden_size", width, heads),
        d_ff=inner,
        gated=False,
        vocab=vocab,
        tied=bool(tied),
        params=count,
        active_params=count,
        length=positions,
    )


def _llama(data: dict[str, Any], kind: str) -> Shape:
    width, layers = field(data, "hidden_size"), field(data, "num_hidden_layers")
    heads = field(data, "num_attention_heads")
    keys = data.get("num_key_value_heads") or heads
    head = data.get("head_dim") or even("hidden_size", width, heads)
    even("num_attention_heads", heads, keys)
    vocab = field(data, "vocab_size")
    tied = bool(data.get("tie_word_embeddings", False))
    moe = _experts(data, kind, layers)
    attention, head = _attention(data, kind, (width, heads, keys, head))
    dense = moe["dense_layers"] if moe["n_experts"] else layers
    inner = field(data, "intermediate_size") if dense else 0
    one = 3 * width * moe["expert_d_ff"]
    if kind == "gpt_oss":  # biases of the products, of the router, and the sinks
        one += 2 * moe["expert_d_ff"] + width
        attention += heads + moe["n_experts"]
    outside = 3 * width * moe["shared_d_ff"] + width * moe["n_experts"]
    outside += width if kind == "qwen2_moe" else 0  # the shared expert's own gate
    outside += moe["n_experts"] if kind == "deepseek_v3" else 0  # its balancing bias
    sparse = layers - dense
    ends_in_norm = kind.startswith(("gemma2", "gemma3"))
    norms = 4 if ends_in_norm else 2
    every = layers * (attention + norms * width) + dense * 3 * width * inner
    every += sparse * outside + vocab * width * (1 if tied else 2) + width
    local = _window(data, kind, layers)
    return Shape(
        name=kind,
        layers=layers,
        d_model=width,
        n_heads=heads,
        kv_heads=keys,
        head_dim=head,
        d_ff=inner,
        gated=True,
        vocab=vocab,
        tied=tied,
        params=every + sparse * moe["n_experts"] * one,
        active_params=every + sparse * moe["top_k"] * one,
        **moe,
        latent=attention if kind.startswith("deepseek") else None,
        window=local[0],
        window_share=local[1],
        ends_in_norm=ends_in_norm,
        length=data.get("max_position_embeddings"),
    )


def _attention(
    data: dict[str, Any], kind: str, sizes: tuple[int, int, int, int]
) -> tuple[int, int]:
    """Parameters of one attention, and the width of a head that FLOPs go by."""
    width, heads, keys, head = sizes
    if not kind.startswith("deepseek"):
        count = 2 * width * head * (heads + keys)
        if kind.startswith(("qwen3", "gemma3")):
            count += 2 * head  # norms of queries and keys
        if data.get("attention_bias", kind in ("qwen2", "qwen2_moe")):
            count += head * (heads + 2 * keys)
            if kind in ("llama", "gpt_oss"):
                count += width
        return count, head
    rank, rope = field(data, "kv_lora_rank"), field(data, "qk_rope_head_dim")
    plain, value = field(data, "qk_nope_head_dim"), field(data, "v_head_dim")
    latent = data.get("q_lora_rank")
    wide = heads * (plain + rope)
    count = width * wide if latent is None else latent * (width + wide + 1)
    count += width * (rank + rope) + rank + rank * heads * (plain + value)
    return count + heads * value * width, (plain + rope + value) // 2


def _experts(data: dict[str, Any], kind: str, layers: int) -> dict[str, int]:
    none = ("n_experts", "top_k", "expert_d_ff", "shared_d_ff", "dense_layers")
    if kind in ("mixtral", "gpt_oss"):
        found = (field(data, "num_local_experts"), field(data, "num_experts_per_tok"))
        return dict(
            zip(none, (*found, field(data, "intermediate_size"), 0, 0), strict=True)
        )
    if kind in ("qwen2_moe", "qwen3_moe"):
        if data.get("decoder_sparse_step", 1) != 1 or data.get("mlp_only_layers"):
            raise ValueError(
                "experts in some layers only (decoder_sparse_step, mlp_only_layers) "
                "cannot be planned; leave them out for an estimate"
            )
        shared = data.get("shared_expert_intermediate_size", 0)
        shared = shared if kind == "qwen2_moe" else 0
        width = field(data, "moe_intermediate_size")
        count = field(data, "num_experts")
        found = (count, field(data, "num_experts_per_tok"), width, shared, 0)
        return dict(zip(none, found, strict=True))
    if kind.startswith("deepseek") and data.get("n_routed_experts"):
        width = field(data, "moe_intermediate_size")
        shared = width * (data.get("n_shared_experts") or 0)
        first = min(data.get("first_k_dense_replace", 0), layers)
        count = field(data, "n_routed_experts")
        found = (count, field(data, "num_experts_per_tok"), width, shared, first)
        return dict(zip(none, found, strict=True))
    return dict.fromkeys(none, 0)


def _window(data: dict[str, Any], kind: str, layers: int) -> tuple[int, float]:
    """Keys a local layer sees and the share of local layers."""
    window = data.get("sliding_window") or 0
    if not window or not data.get("use_sliding_window", kind in _SLIDING):
        return 0, 0.0
    if isinstance(data.get("layer_types"), list) and data["layer_types"]:
        local = [each == "sliding_attention" for each in data["layer_types"]]
        return window, sum(local) / len(local)
    if kind in _PERIOD:
        period = data.get("sliding_window_pattern") or _PERIOD[kind]
        return window, (layers - layers // period) / layers
    first = data.get("max_window_layers", 0) if kind.startswith("qwen") else 0
    return window, max(0.0, (layers - first) / layers)


def even(name: str, size: int, parts: int) -> int:
    """How large each of so many equal parts is.

    Raises:
      ValueError: they cannot be equal.
    """
    if size % parts:
        raise ValueError(f"{name}={size} does not divide into {parts} equal parts")
    return size // parts
