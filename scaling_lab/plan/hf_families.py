"""A Hugging Face model as a config of ours, where a family of ours has its blocks.

What costs nothing is not asked about: how rotary wavelengths are stretched is carried
over where the family can (Llama 3, Gemma 3) and left out where it cannot.
"""

from __future__ import annotations

from typing import Any

from scaling_lab import models
from scaling_lab.models.ops import RopeScaling
from scaling_lab.parallel.verbs import Routing
from scaling_lab.plan.huggingface import Shape


def config_of(data: dict[str, Any], shape: Shape) -> Any:
    """Our own config of a Hugging Face model; ``None`` where no family is the same.

    Args:
      data: the fields of its ``config.json``, a type's defaults filled in.
      shape: what `huggingface.read` made of them.
    """
    if data.get("attention_bias") or data.get("mlp_bias"):
        return None
    if shape.name in ("gemma3", "gemma3_text"):
        return _gemma3(data, shape)
    if shape.window:
        return None
    if shape.name in ("llama", "mistral"):
        return _family("llama", data, shape, rope_scaling=_stretch(data))
    if shape.name == "qwen3":
        return _family("qwen3", data, shape)
    if shape.name in ("mixtral", "qwen3_moe"):
        return _experts(data, shape)
    if shape.name in ("deepseek_v2", "deepseek_v3"):
        return _deepseek(data, shape)
    if shape.name == "gpt2" and shape.tied:
        sizes = _sizes(shape) | {"length": shape.length or 1024}
        return models.family("gpt2").Config(**sizes)
    return None


def _sizes(shape: Shape) -> dict[str, Any]:
    """The letters that every family has."""
    return {
        "L": shape.layers,
        "D": shape.d_model,
        "N": shape.n_heads,
        "K": shape.kv_heads,
        "H": shape.head_dim,
        "F": shape.d_ff,
        "V": shape.vocab,
    }


#: What transformers' ``configuration_<type>.py`` has where a file is silent: the base
#: of rotary positions, the norms' epsilon, the longest sequence.
_SILENT = {
    "llama": (10_000.0, 1e-6, 2048),
    "mistral": (10_000.0, 1e-6, 131_072),
    "qwen3": (10_000.0, 1e-6, 32_768),
    "qwen3_moe": (10_000.0, 1e-6, 32_768),
    "mixtral": (1_000_000.0, 1e-5, 131_072),
    "gemma3": (1_000_000.0, 1e-6, 131_072),
    "gemma3_text": (1_000_000.0, 1e-6, 131_072),
    "deepseek_v2": (10_000.0, 1e-6, 2048),
    "deepseek_v3": (10_000.0, 1e-6, 4096),
}


def _family(name: str, data: dict[str, Any], shape: Shape, **more: Any) -> Any:
    """A family's config: the letters, the few other numbers, and what it has alone."""
    base, epsilon, length = _SILENT[shape.name]
    fields = {
        **_sizes(shape),
        "tied": shape.tied,
        "rope_base": float(_rope(data).get("rope_theta") or base),
        "norm_epsilon": float(data.get("rms_norm_eps") or epsilon),
        "length": shape.length or length,
    }
    return models.family(name).Config(**fields | more)


def _experts(data: dict[str, Any], shape: Shape) -> Any:
    """Mixtral and Qwen3 with experts: F is the width of one expert."""
    mixtral = shape.name == "mixtral"
    routing = Routing(
        top_k=shape.top_k,
        # Mixtral's weights always sum to 1; Qwen3's do where the file says so.
        normalise=mixtral or bool(data.get("norm_topk_prob", False)),
        balance=float(data.get("router_aux_loss_coef", 0.001)),
    )
    return _family(
        shape.name, data, shape, F=shape.expert_d_ff, E=shape.n_experts, routing=routing
    )


def _deepseek(data: dict[str, Any], shape: Shape) -> Any:
    """DeepSeek-V2 without groups of experts, and V3."""
    third = shape.name == "deepseek_v3"
    groups = data.get("n_group", 8 if third else 1) or 1
    whole = 0 < shape.dense_layers < shape.layers and shape.shared_d_ff
    if data.get("moe_layer_freq", 1) != 1 or not whole or (groups > 1 and not third):
        return None
    routing = Routing(
        top_k=shape.top_k,
        gate="sigmoid" if third else "softmax",
        normalise=bool(data.get("norm_topk_prob", third)),
        scaling=float(data.get("routed_scaling_factor", 2.5 if third else 1.0)),
        groups=groups,
        top_groups=data.get("topk_group", 4 if groups > 1 else 1) or 1,
        balance=float(data.get("aux_loss_alpha", 0.0001)),
    )
    return _family(
        "deepseek",
        data,
        shape,
        H=data["qk_nope_head_dim"],
        P=data["qk_rope_head_dim"],
        U=data["v_head_dim"],
        R=data["kv_lora_rank"],
        Q=data.get("q_lora_rank"),
        E=shape.n_experts,
        expert_width=shape.expert_d_ff,
        shared_width=shape.shared_d_ff,
        dense=shape.dense_layers,
        biased=third,
        routing=routing,
    )


def _gemma3(data: dict[str, Any], shape: Shape) -> Any:
    """Gemma 3's text: every so manyth layer sees all."""
    listed = data.get("layer_types") or []
    period = data.get("sliding_window_pattern") or 6
    if "full_attention" in listed:
        period = listed.index("full_attention") + 1
    kinds = [bool((layer + 1) % period) for layer in range(shape.layers)]
    capped = data.get("attn_logit_softcapping") or data.get("final_logit_softcapping")
    if capped or not shape.window or (listed and _local(listed) != kinds):
        return None
    width = data.get("query_pre_attn_scalar", 256)
    local = _rope(data, "sliding_attention").get("rope_theta")
    return _family(
        "gemma3",
        data,
        shape,
        window=shape.window,
        period=period,
        stretch=float(_rope(data, "full_attention").get("factor") or 1.0),
        query_width=None if width == shape.head_dim else int(width),
        rope_base=float(_rope(data, "full_attention").get("rope_theta") or 1e6),
        local_rope_base=float(local or data.get("rope_local_base_freq") or 1e4),
    )


def _local(listed: list[str]) -> list[bool]:
    return [each == "sliding_attention" for each in listed]


def _rope(data: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    """What a file says of rotary positions, in the old fields or in the new one.

    Args:
      kind: of the layers, where the new field tells them apart.
    """
    old = {"rope_theta": data.get("rope_theta"), **(data.get("rope_scaling") or {})}
    new = data.get("rope_parameters") or {}
    if kind is None:
        return {**old, **new}
    # In the old fields only layers that see everything are stretched.
    return new.get(kind, {}) or (old if kind == "full_attention" else {})


def _stretch(data: dict[str, Any]) -> RopeScaling | None:
    """Llama 3's stretching of rotary wavelengths."""
    found = _rope(data)
    if found.get("rope_type", found.get("type")) != "llama3":
        return None
    return RopeScaling(
        factor=float(found.get("factor", 8.0)),
        low=float(found.get("low_freq_factor", 1.0)),
        high=float(found.get("high_freq_factor", 4.0)),
        original_length=int(found.get("original_max_position_embeddings", 8192)),
    )
