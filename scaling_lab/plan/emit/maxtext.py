"""MaxText: ``key=value`` after ``python -m maxtext.trainers.pre_train.train base.yml``.

Its ``tensor_sequence`` axis is our ``tensor`` with ``+sequence``. Its ``expert`` axis
multiplies, ours is a subgroup, so what it takes is taken from ``fsdp``, then ``data``.
"""

from __future__ import annotations

import math

from scaling_lab.parallel import policies
from scaling_lab.plan import words
from scaling_lab.plan.answer import Choice
from scaling_lab.plan.emit._flags import Flags
from scaling_lab.plan.question import Question

VERSION = "AI-Hypercomputer/maxtext src/maxtext/configs/base.yml at 000b810b"

#: Our verbs as MaxText's custom policy calls them.
_SAVED = {
    "attention/query": "query_proj",
    "attention/key": "key_proj",
    "attention/value": "value_proj",
    "attention/attend": "context",
    "attention/out": "out_proj",
    "ffn/gate": "mlpwi_0",
    "ffn/up": "mlpwi_1",
    "ffn/experts/gate": "moe_mlpwi_0",
    "ffn/experts/up": "moe_mlpwi_1",
    "ffn/experts/down": "moe_mlpwo",
}
_PRECISIONS = {"int8": "int8", "float8": "fp8"}


def emit(question: Question, choice: Choice) -> Flags:
    """A choice as MaxText's flags."""
    flags = Flags("maxtext", VERSION, "{name}={value}")
    _model(question, flags)
    _mesh(question, choice, flags)
    _batch(question, choice, flags)
    _remat(choice, flags)
    if words.ONCE in choice.layout and "stage" in choice.mesh:
        flags.values["pipeline_fsdp_ag_once"] = True
    elif words.ONCE in choice.layout:
        flags.cannot("gathered weights kept without a pipeline")
    if choice.host:
        flags.values["optimizer_memory_host_offload"] = True
    if choice.zero == 1:
        flags.values["shard_optimizer_over_data"] = True
    elif choice.zero == 2:
        flags.values["shard_optimizer_over_data"] = True
        flags.cannot("ZeRO-2's divided gradients; ZeRO-1 is asked instead", zero=1)
    if question.optimizer != "adamw":
        flags.unmapped.append(f"optimizer {question.optimizer}; set opt_type yourself")
    if question.precision in _PRECISIONS:
        flags.values["quantization"] = _PRECISIONS[question.precision]
    elif question.precision not in ("bfloat16", "float32"):
        flags.unmapped.append(f"precision {question.precision}")
    else:
        flags.values["dtype"] = question.precision
    return flags


def _model(question: Question, flags: Flags) -> None:
    model = question.shape
    flags.values |= {
        "override_model_config": True,
        "base_num_decoder_layers": model.layers,
        "base_emb_dim": model.d_model,
        "base_num_query_heads": model.n_heads,
        "base_num_kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "logits_via_embedding": model.tied,
    }
    if model.d_ff or not model.n_experts:
        flags.values["base_mlp_dim"] = model.d_ff
    if model.n_experts:
        flags.values |= {
            "num_experts": model.n_experts,
            "num_experts_per_tok": model.top_k,
            "base_moe_mlp_dim": model.expert_d_ff,
            "first_num_dense_layers": model.dense_layers,
        }
        if model.shared_d_ff:
            shared = model.shared_d_ff // model.expert_d_ff
            flags.values["shared_experts"] = max(shared, 1)
    if model.latent is not None:
        flags.unmapped.append(
            "latent attention's ranks; take MaxText's own model_name instead"
        )
    if not model.gated:
        flags.unmapped.append(
            "a feed-forward without a gate; set mlp_activations and decoder_block"
        )


def _mesh(question: Question, choice: Choice, flags: Flags) -> None:
    sizes = {axis: choice.mesh.get(axis, 1) for axis in ("data", "fsdp", "context")}
    expert = choice.mesh.get("expert", 1)
    left = expert
    for axis in ("fsdp", "data", "context"):
        taken = math.gcd(left, sizes[axis])
        sizes[axis], left = sizes[axis] // taken, left // taken
    tensor = choice.mesh.get("tensor", 1)
    name = "tensor_sequence" if "+sequence" in choice.layout else "tensor"
    if "+ulysses" in choice.layout:
        flags.unmapped.append("positions for heads in attention; keys are gathered")
    stage = choice.mesh.get("stage", 1)
    inside = {**sizes, name: tensor, "pipeline": stage, "expert": expert}
    outside = dict.fromkeys(inside, 1)
    slices = question.target.slices
    for axis in ("data", "pipeline", "fsdp"):
        taken = math.gcd(slices, inside[axis])
        inside[axis], outside[axis] = inside[axis] // taken, taken
        slices //= taken
    if slices > 1:
        flags.cannot(
            f"{slices} slices are left over: no axis of data, stage or fsdp spans them"
        )
    for axis, size in inside.items():
        flags.values[f"ici_{axis}_parallelism"] = size
    for axis, size in outside.items():
        if size > 1 or axis == "data":
            flags.values[f"dcn_{axis}_parallelism"] = size


def _batch(question: Question, choice: Choice, flags: Flags) -> None:
    flags.values["max_target_length"] = question.length
    if choice.schedule == "none":
        held = question.batch / choice.microbatches / question.devices
        flags.values["per_device_batch_size"] = held
        flags.values["gradient_accumulation_steps"] = choice.microbatches
        return
    pieces = int(choice.schedule.partition(":")[2] or 1)
    parts = choice.mesh["stage"] * pieces
    layers = -(-question.shape.layers // parts)
    if layers * parts != question.shape.layers:
        flags.cannot(
            f"{question.shape.layers} layers over {parts} unequal parts; MaxText wants "
            f"equal ones, so pad to {layers * parts} layers or choose another row"
        )
    flags.values["per_device_batch_size"] = question.batch / question.devices
    flags.values["num_pipeline_microbatches"] = choice.microbatches
    flags.values["num_layers_per_pipeline_stage"] = layers
    flags.values["num_pipeline_repeats"] = pieces
    flags.unmapped.append(
        f"schedule {choice.schedule}; MaxText has one, circular, that holds all "
        "microbatches as GPipe does"
    )
    flags.runs["schedule"] = "gpipe"


def _remat(choice: Choice, flags: Flags) -> None:
    if choice.remat == "full":
        flags.values["remat_policy"] = "full"
        return
    if choice.remat == "none":
        flags.values["remat_policy"] = "minimal_with_context"
        flags.unmapped.append(
            "remat none; minimal_with_context keeps every product and recomputes the "
            "rest"
        )
        return
    flags.values["remat_policy"] = "custom"
    policy = policies.parse(choice.remat)
    for verb in policy.kept:
        if verb not in _SAVED:
            flags.cannot(f"what {verb} returns, kept by name")
            continue
        place = "offload" if verb in policy.offloaded else "device"
        flags.values[_SAVED[verb]] = place
