"""What other people call their columns, and in which unit.

A heading is looked up without case, punctuation and the prefixes that exports add
(``config.``, ``summary.``, ``train/``). The first name of an entry is ours.
"""

from __future__ import annotations

import re

#: Our name -> (what to multiply by, headings as `plain` makes them).
NUMBERS: dict[str, tuple[tuple[float, tuple[str, ...]], ...]] = {
    "step_seconds": (
        (
            1.0,
            (
                "step_seconds",
                "step_time",
                "step_time_seconds",
                "step_time_s",
                "seconds_per_step",
                "time_per_step",
                "iteration_time",
                "iteration_time_s",
                "throughput_duration",
                "perf_step_time_seconds",
                "time_metrics_end_to_end_s",
                "s_per_step",
            ),
        ),
        (
            1e-3,
            (
                "step_ms",
                "step_time_ms",
                "iteration_time_ms",
                "time_per_iteration_ms",
                "elapsed_time_per_iteration_ms",
            ),
        ),
    ),
    "tokens_per_second_per_chip": (
        (
            1.0,
            (
                "tokens_per_second_per_chip",
                "tokens_per_second_per_device",
                "tokens_per_sec_per_device",
                "tokens_per_sec_per_gpu",
                "throughput_tokens_per_sec_per_gpu",
                "throughput_device_tokens_per_sec",
                "perf_per_device_tokens_per_sec",
                "tokens_s_gpu",
                "throughput_tps",
                "tps",
            ),
        ),
    ),
    "tokens_per_second": (
        (
            1.0,
            (
                "tokens_per_second",
                "tokens_per_sec",
                "tokens_s",
                "throughput_tokens",
                "throughput_tokens_per_sec",
                "throughput_tokens_per_second",
            ),
        ),
    ),
    "tflops_per_chip": (
        (
            1.0,
            (
                "tflops_per_chip",
                "tflops_per_gpu",
                "perf_per_device_tflops_per_sec",
                "tflops",
                "tflop_s_gpu",
                "throughput_per_gpu_tflop_s_gpu",
            ),
        ),
    ),
    "mfu": (
        (
            1.0,
            (
                "mfu",
                "model_flops_utilization",
                "throughput_device_mfu",
                "throughput_mfu",
            ),
        ),
        (1e-2, ("mfu_percent",)),
    ),
    "peak_bytes": (
        (1.0, ("peak_bytes", "peak_memory_bytes", "max_memory_allocated")),
        (
            2.0**30,
            ("peak_memory_gib", "memory_max_reserved_gib", "memory_max_active_gib"),
        ),
        (1e9, ("peak_memory_gb", "max_memory_gb", "memory_gb")),
    ),
    "loss": ((1.0, ("loss", "final_loss", "train_loss", "learning_loss", "lm_loss")),),
    "chips": (
        (
            1.0,
            ("chips", "gpus", "num_gpus", "world_size", "num_devices", "devices"),
        ),
    ),
    "length": (
        (
            1.0,
            (
                "length",
                "seq_len",
                "seq_length",
                "sequence_length",
                "max_target_length",
                "max_seq_len",
                "training_seq_len",
            ),
        ),
    ),
    "batch": (
        (
            1.0,
            (
                "batch",
                "global_batch",
                "global_batch_size",
                "training_global_batch_size",
            ),
        ),
    ),
    "tokens_per_step": (
        (1.0, ("tokens_per_step", "global_batch_tokens", "batch_tokens")),
    ),
    "params": (
        (1.0, ("params", "num_params", "parameters", "n_params")),
        (1e9, ("parameters_billion", "params_b", "params_billion")),
    ),
    "steps": ((1.0, ("steps", "num_steps", "train_iters", "max_steps", "step")),),
    "seed": ((1.0, ("seed",)),),
    "accumulate": (
        (1.0, ("accumulate", "gradient_accumulation_steps", "grad_accum_steps")),
    ),
}
#: Mesh axes: our name -> headings.
AXES: dict[str, tuple[str, ...]] = {
    "data": (
        "data",
        "dp",
        "data_parallelism",
        "data_parallel_size",
        "data_parallel_replicate_degree",
        "ici_data_parallelism",
    ),
    "fsdp": (
        "fsdp",
        "data_parallel_shard_degree",
        "ici_fsdp_parallelism",
    ),
    "tensor": (
        "tensor",
        "tp",
        "tensor_parallelism",
        "tensor_model_parallel_size",
        "tensor_parallel_degree",
        "ici_tensor_parallelism",
    ),
    "stage": (
        "stage",
        "pp",
        "pipeline_parallelism",
        "pipeline_model_parallel_size",
        "pipeline_parallel_degree",
        "ici_pipeline_parallelism",
    ),
    "context": (
        "context",
        "cp",
        "context_parallel_size",
        "context_parallel_degree",
        "ici_context_parallelism",
    ),
    "expert": (
        "expert",
        "ep",
        "expert_model_parallel_size",
        "expert_parallel_degree",
        "ici_expert_parallelism",
    ),
}
#: Words: our name -> headings.
TEXTS: dict[str, tuple[str, ...]] = {
    "run": ("run", "id", "run_id", "name", "run_name"),
    "size": ("model", "size", "model_name", "model_flavor"),
    "family": ("family", "architecture"),
    "hardware": ("hardware", "chip", "gpu", "gpu_type", "accelerator", "device_kind"),
    "target": ("target",),
    "remat": ("remat", "remat_policy", "activation_checkpointing", "recompute"),
    "precision": ("precision", "dtype", "compute_dtype"),
    "optimizer": ("optimizer", "optimizer_name", "opt_type"),
    "state": ("state", "status"),
    "source": ("source", "url", "repository"),
    "started": ("started", "created", "created_at", "start_time", "date"),
    "convention": ("flops_convention",),
}
_PREFIXES = ("config", "summary", "train", "training", "parallelism", "model")


def plain(heading: str) -> str:
    """``config.Seq Length`` -> ``config_seq_length``; a unit in brackets stays."""
    text = heading.replace("%", " percent ").replace("#", " ")
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")


def spellings(heading: str) -> list[str]:
    """A heading as it may be known: whole, then without prefixes."""
    found = [plain(heading)]
    while True:
        first, _, rest = found[-1].partition("_")
        if first not in _PREFIXES or not rest:
            return found
        found.append(rest)
