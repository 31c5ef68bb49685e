"""Megatron-LM: ``--flag value`` after ``torchrun … pretrain_gpt.py``.

Data parallelism is what is left of the world. ZeRO-1 is its distributed optimizer;
ZeRO-2 and 3, and hybrid sharding, are Megatron-FSDP.
"""

from __future__ import annotations

from scaling_lab.parallel import policies
from scaling_lab.plan import words
from scaling_lab.plan.answer import Choice
from scaling_lab.plan.candidates import uniform
from scaling_lab.plan.emit._flags import Flags
from scaling_lab.plan.question import Question

VERSION = "NVIDIA/Megatron-LM megatron/training/arguments.py at 307dcf37"

_STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}

#: What is kept where norms and the feed-forward are made again, in our verbs.
_ATTENTION = (
    "save:attention/query,attention/key,attention/value,attention/attend,attention/out"
)


def emit(question: Question, choice: Choice) -> Flags:
    """A choice as Megatron-LM's flags."""
    flags = Flags("megatron", VERSION, "--{name} {value}")
    _model(question, flags)
    _mesh(choice, flags)
    _uneven(question, choice, flags)
    _state(choice, flags)
    flags.values |= {
        "micro-batch-size": choice.sequences,
        "global-batch-size": question.batch,
        "seq-length": question.length,
        "max-position-embeddings": question.length,
    }
    _remat(choice, flags)
    if choice.remat not in uniform(question):
        flags.cannot(f"remat {words.remat(choice.remat)}, verb by verb")
    if words.ONCE in choice.layout:
        flags.cannot("gathered weights kept for the backward pass")
    _precision(question, flags)
    if choice.host:
        flags.values["optimizer-cpu-offload"] = True
    if question.optimizer == "adamw":
        flags.values["optimizer"] = "adam"
    else:
        flags.unmapped.append(f"optimizer {question.optimizer}; adam is the nearest")
        flags.runs["optimizer"] = "adamw"
    return flags


def _model(question: Question, flags: Flags) -> None:
    model = question.shape
    flags.values |= {
        "num-layers": model.layers,
        "hidden-size": model.d_model,
        "num-attention-heads": model.n_heads,
        "kv-channels": model.head_dim,
        "ffn-hidden-size": model.d_ff or model.expert_d_ff,
    }
    if model.kv_heads < model.n_heads:
        flags.values["group-query-attention"] = True
        flags.values["num-query-groups"] = model.kv_heads
    if model.gated:
        flags.values |= {
            "swiglu": True,
            "disable-bias-linear": True,
            "normalization": "RMSNorm",
            "position-embedding-type": "rope",
        }
    if not model.tied:
        flags.values["untie-embeddings-and-output-weights"] = True
    if model.n_experts:
        flags.values |= {
            "num-experts": model.n_experts,
            "moe-router-topk": model.top_k,
            "moe-ffn-hidden-size": model.expert_d_ff,
        }
        if model.shared_d_ff:
            flags.values["moe-shared-expert-intermediate-size"] = model.shared_d_ff
        if model.dense_layers:
            flags.unmapped.append(
                f"the first {model.dense_layers} layers are dense; write them in "
                "--moe-layer-freq"
            )
    if model.latent is not None:
        flags.unmapped.append(
            "latent attention's ranks; add --multi-latent-attention and its sizes"
        )
    flags.unmapped.append(
        f"the vocabulary of {model.vocab:,}: it comes from the tokenizer"
    )


def _mesh(choice: Choice, flags: Flags) -> None:
    flags.values["tensor-model-parallel-size"] = choice.mesh.get("tensor", 1)
    flags.values["pipeline-model-parallel-size"] = choice.mesh.get("stage", 1)
    flags.values["context-parallel-size"] = choice.mesh.get("context", 1)
    if "+ulysses" in choice.layout:
        flags.values["cp-comm-type"] = "a2a"
    if "+sequence" in choice.layout:
        flags.values["sequence-parallel"] = True
    if "expert" in choice.mesh:
        flags.values["expert-model-parallel-size"] = choice.mesh["expert"]
    name, _, pieces = choice.schedule.partition(":")
    if pieces:
        flags.values["num-virtual-stages-per-pipeline-rank"] = int(pieces)
    elif name in ("gpipe", "zero_bubble"):
        flags.unmapped.append(f"schedule {name}; Megatron-LM runs 1F1B instead")


def _uneven(question: Question, choice: Choice, flags: Flags) -> None:
    parts = choice.mesh.get("stage", 1) * int(choice.schedule.partition(":")[2] or 1)
    if question.shape.layers % parts:
        flags.unmapped.append(
            f"{question.shape.layers} layers over {parts} unequal parts; write them in "
            "--pipeline-model-parallel-layout"
        )


def _state(choice: Choice, flags: Flags) -> None:
    data, fsdp = choice.mesh.get("data", 1), choice.mesh.get("fsdp", 1)
    if choice.zero == 1 and fsdp == 1:
        flags.values["use-distributed-optimizer"] = True
        return
    if not choice.zero:
        return
    flags.values |= {
        "use-megatron-fsdp": True,
        "use-distributed-optimizer": True,
        "data-parallel-sharding-strategy": _STRATEGIES[3 if fsdp > 1 else 2],
        "ckpt-format": "fsdp_dtensor",
    }
    if data > 1 and fsdp > 1:
        outer = "optim" if choice.zero in (1, 2) else "no_shard"
        flags.values["num-distributed-optimizer-instances"] = data
        flags.values["outer-dp-sharding-strategy"] = outer
        if choice.zero == 2:
            flags.cannot("gradients divided over data; only state is", zero=1)


def _remat(choice: Choice, flags: Flags) -> None:
    if choice.remat == "none":
        return
    if choice.remat == "full":
        flags.values |= {
            "recompute-granularity": "full",
            "recompute-method": "uniform",
            "recompute-num-layers": 1,
        }
        return
    saved = policies.parse(choice.remat).kept
    products = any(verb.startswith("ffn/") for verb in saved)
    modules = ["layernorm"] if products else ["layernorm", "mlp"]
    # Without norms alone a block keeps nearly what it does under remat none.
    flags.runs["remat"] = "none" if products else _ATTENTION
    flags.values["recompute-granularity"] = "selective"
    flags.values["recompute-modules"] = " ".join(modules)
    flags.unmapped.append(
        f"remat {choice.remat}; Megatron-LM recomputes modules, nearest "
        + " and ".join(modules)
    )


def _precision(question: Question, flags: Flags) -> None:
    flags.values["bf16"] = True
    if question.precision in ("float8", "mxfp8"):
        flags.values["fp8-format"] = "hybrid"
        if question.precision == "mxfp8":
            flags.values["fp8-recipe"] = "mxfp8"
    elif question.precision != "bfloat16":
        flags.unmapped.append(f"precision {question.precision}; bfloat16 is asked")
