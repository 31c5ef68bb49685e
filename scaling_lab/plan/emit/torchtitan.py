"""torchtitan: ``--section.option value`` after ``./run_train.sh``.

FSDP2 is its only sharding: ``data`` replicates, ``fsdp`` shards, and ZeRO-2 is FSDP
that does not reshard after the forward pass.
"""

from __future__ import annotations

from scaling_lab.plan import words
from scaling_lab.plan.answer import Choice
from scaling_lab.plan.candidates import uniform
from scaling_lab.plan.emit._flags import Flags
from scaling_lab.plan.question import Question

VERSION = "pytorch/torchtitan torchtitan/config/configs.py at 0014ac2c"

#: What `selective` keeps: attention's result and the odd products, in our verbs.
_SELECTIVE = (
    "save:attention/query,attention/value,attention/attend,ffn/gate,ffn/down,"
    "ffn/experts/gate,ffn/experts/down"
)
_SCHEDULES = {"1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B"}


def emit(question: Question, choice: Choice) -> Flags:
    """A choice as torchtitan's flags."""
    flags = Flags("torchtitan", VERSION, "--{name} {value}")
    _mesh(choice, flags)
    _pipeline(question, choice, flags)
    flags.values |= {
        "training.global_batch_size": question.batch,
        "training.seq_len": question.length,
    }
    _remat(choice, flags)
    if choice.remat not in uniform(question):
        flags.cannot(f"remat {words.remat(choice.remat)}, verb by verb")
    if f"{words.ONCE}=" in choice.layout:
        flags.cannot("gathered weights kept of some layers and not of all")
    elif words.ONCE in choice.layout:
        flags.values["parallelism.fsdp_reshard_after_forward"] = "never"
    if choice.host:
        flags.values["training.enable_cpu_offload"] = True
        flags.unmapped.append(
            "optimizer state alone on the host; torchtitan takes parameters with it"
        )
    if question.optimizer != "adamw":
        flags.unmapped.append(f"optimizer {question.optimizer}; AdamW runs instead")
        flags.runs["optimizer"] = "adamw"
    if question.precision != "bfloat16":
        flags.unmapped.append(
            f"precision {question.precision}; it is a converter of the model's config"
        )
    flags.unmapped.append(
        f"the model ({question.shape.params:,} parameters): name its config with "
        "--module and --config"
    )
    return flags


def _mesh(choice: Choice, flags: Flags) -> None:
    data, fsdp = choice.mesh.get("data", 1), choice.mesh.get("fsdp", 1)
    if choice.zero in (1, 2) and fsdp == 1:
        data, fsdp = 1, data
        flags.values["parallelism.fsdp_reshard_after_forward"] = "never"
        if choice.zero == 1:
            flags.unmapped.append("ZeRO-1; FSDP that never reshards is ZeRO-2")
    elif choice.zero in (1, 2):
        flags.cannot(
            f"ZeRO-{choice.zero} over data beside fsdp; data replicates instead", zero=3
        )
    flags.values |= {
        "parallelism.data_parallel_replicate_degree": data,
        "parallelism.data_parallel_shard_degree": fsdp,
        "parallelism.tensor_parallel_degree": choice.mesh.get("tensor", 1),
        "parallelism.context_parallel_degree": choice.mesh.get("context", 1),
        "parallelism.pipeline_parallel_degree": choice.mesh.get("stage", 1),
    }
    if "+ulysses" in choice.layout:
        flags.unmapped.append("positions for heads in attention; keys go round instead")
    if "expert" in choice.mesh:
        flags.values["parallelism.expert_parallel_degree"] = choice.mesh["expert"]
        inside = choice.mesh.get("tensor", 1) * fsdp * choice.mesh.get("context", 1)
        if inside % choice.mesh["expert"]:
            flags.cannot("experts over data; torchtitan takes them from fsdp")


def _pipeline(question: Question, choice: Choice, flags: Flags) -> None:
    if choice.schedule == "none":
        flags.values["training.local_batch_size"] = choice.sequences
        return
    name, _, pieces = choice.schedule.partition(":")
    held = choice.sequences * choice.microbatches
    flags.values["training.local_batch_size"] = held
    flags.values["parallelism.pipeline_parallel_microbatch_size"] = choice.sequences
    if name == "zero_bubble":
        flags.values["parallelism.pipeline_parallel_schedule"] = "ZBVZeroBubble"
        flags.unmapped.append("ZB-H1; ZBVZeroBubble is the nearest")
        return
    flags.values["parallelism.pipeline_parallel_schedule"] = _SCHEDULES[name]
    layers = -(-question.shape.layers // (choice.mesh["stage"] * int(pieces or 1)))
    flags.values |= {
        "parallelism.pipeline_parallel_layers_per_stage": layers,
        "parallelism.pipeline_parallel_first_stage_less_layers": 0,
        "parallelism.pipeline_parallel_last_stage_less_layers": 0,
    }


def _remat(choice: Choice, flags: Flags) -> None:
    kind = choice.remat.partition(":")[0]
    flags.values["activation_checkpoint.mode"] = {
        "none": "none",
        "full": "full",
    }.get(kind, "selective")
    if kind in ("save", "offload"):
        flags.unmapped.append(
            f"remat {choice.remat}; selective saves attention and every other product"
        )
        flags.runs["remat"] = _SELECTIVE
