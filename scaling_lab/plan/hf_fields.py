"""The fields of a Hugging Face ``config.json``: which types are known, what is left out
of a type's file, and whether its numbers can be."""

from __future__ import annotations

import re
from typing import Any

from scaling_lab.names import unknown

#: Blocks like Llama's: RMSNorm, rotary positions, a gate, no absolute positions.
LLAMA_LIKE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
    "gpt_oss",
)
GPT_LIKE = ("gpt2", "gpt_neox")

#: What transformers' ``configuration_<type>.py`` fills in where a file is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 256, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 256, "tie_word_embeddings": True},
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {"head_dim": 64, "attention_bias": True},
}
_DEFAULTS["gemma3_text"] = _DEFAULTS["gemma3"]

_POSITIVE = (
    "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "intermediate_size vocab_size max_position_embeddings n_embd n_layer n_head "
    "n_positions n_inner moe_intermediate_size num_experts num_local_experts "
    "n_routed_experts num_experts_per_tok kv_lora_rank q_lora_rank qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim decoder_sparse_step sliding_window_pattern"
).split()
_MAY_BE_ZERO = (
    "n_shared_experts first_k_dense_replace shared_expert_intermediate_size "
    "sliding_window max_window_layers"
).split()


def filled(data: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The fields with the type's defaults, and the type.

    Raises:
      ValueError: a type that is not known, or a number that cannot be.
    """
    kind = _kind(data)
    if isinstance(data.get("text_config"), dict):
        data = {**data, **data["text_config"]}
    if kind not in (*LLAMA_LIKE, *GPT_LIKE):
        said = unknown("model_type", kind, (*LLAMA_LIKE, *GPT_LIKE))
        raise ValueError(
            f"{said}; or give a family's fields: "
            '{"family": "llama", "L": 32, "D": 4096, …}'
        )
    given = {name: value for name, value in data.items() if value is not None}
    data = {**_DEFAULTS.get(kind, {}), **given, "model_type": kind}
    for names, least in ((_POSITIVE, 1), (_MAY_BE_ZERO, 0)):
        for name in names:
            whole(name, data.get(name, least), least)
    return data, kind


def field(data: dict[str, Any], *names: str) -> Any:
    """The first of these fields that is there.

    Raises:
      ValueError: none is.
    """
    for name in names:
        if data.get(name) is not None:
            return data[name]
    raise ValueError(f"no {' or '.join(names)} in this {data['model_type']} config")


def whole(name: str, value: Any, least: int = 1) -> None:
    """Raises unless a value is a whole number of at least so much.

    Raises:
      ValueError: with the field and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of {least} or more")


def _kind(data: dict[str, Any]) -> str:
    """``model_type``, or what the architecture's class is called."""
    if data.get("model_type"):
        return str(data["model_type"])
    classes = data.get("architectures") or [""]
    name = re.sub(r"(ForCausalLM|LMHeadModel)$", "", str(classes[0]))
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
