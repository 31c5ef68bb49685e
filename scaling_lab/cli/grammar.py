"""One grammar everywhere: the flags of a run, and the same flags as a grid."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Annotated, Any

import tyro

from scaling_lab.hardware import LOCAL

#: Flag, type, default, help. ``None`` leaves it to the config's own default.
FLAGS: tuple[tuple[str, Any, Any, str], ...] = (
    ("family", str, "llama", "Model family; `scaling-lab models` lists them."),
    ("size", str, "toy", "Size of the family."),
    ("target", str, LOCAL, "Machine: cpu:8, tpu-v5p:4x4x4, h100:8x8, or local."),
    (
        "layout",
        str,
        "fsdp",
        "Axes with sizes and modifiers (fsdp=4,tensor=2+sequence), or a layout's "
        "name; `scaling-lab layouts` lists them.",
    ),
    ("batch", int, 8, "Global batch, in sequences."),
    ("length", int, 256, "Tokens per sequence."),
    ("steps", int, 20, "Optimizer steps."),
    (
        "tokens",
        int | None,
        None,
        "Tokens of a run, instead of steps: a sweep over batches keeps them equal.",
    ),
    ("seed", int, 0, "Of the parameters and of the data's order."),
    (
        "remat",
        str,
        "none",
        "none, full, save:VERB,VERB, recompute:VERB,VERB, or 'save:VERB;offload:VERB' "
        "with the host's memory.",
    ),
    (
        "precision",
        str | None,
        None,
        "Of arithmetic: float32, bfloat16, int8 or fp8 (weights multiplied in 8 bits, "
        "the rest bfloat16); parameters stay float32. "
        "Default: bfloat16 for a TPU or GPU target, float32 for cpu and local.",
    ),
    (
        "parameters",
        str,
        "float32",
        "How matrices rest: float32, or bfloat16 with updates rounded by chance.",
    ),
    (
        "reduce",
        str | None,
        None,
        "What gradients are summed over devices in: float32 or bfloat16. Default: the "
        "precision of arithmetic.",
    ),
    ("accumulate", int, 1, "Microbatches per step."),
    ("stack", str, "auto", "Layers as scan, scan:4 (four in a turn), unroll, or auto."),
    ("axis_type", str, "auto", "Of the mesh: auto or explicit."),
    ("optimizer", str, "adamw", "adamw, adafactor, lion or muon."),
    (
        "moments",
        str,
        "float32",
        "Of the optimizer, as kept between steps: float32, bfloat16 or int8.",
    ),
    ("learning_rate", float, 1e-3, "Peak of the schedule."),
    ("schedule", str, "cosine", "constant, cosine, linear or wsd."),
    ("warmup", int, 10, "Steps of linear warm-up."),
    ("weight_decay", float, 0.1, "On matrices."),
    ("clip", float | None, 1.0, "Largest global gradient norm."),
    ("z_loss", float, 0.0, "Weight of the squared log-normaliser."),
    ("loss_chunks", int | None, None, "Chunks of the vocabulary in the loss."),
    (
        "width",
        int | None,
        None,
        "Width D, instead of the size's: heads, feed-forward and latents grow with it.",
    ),
    ("layers", int | None, None, "Layers, instead of the size's."),
    ("vocabulary", int | None, None, "Vocabulary, instead of the size's."),
    (
        "mup",
        str | None,
        None,
        "Width D, or size of the family, at which the learning rate was tuned: muP "
        "keeps it the best at other widths (adamw and lion).",
    ),
    (
        "mask",
        str | None,
        None,
        "What layers see of a document: causal, window=128, window=128,global=4 (every "
        "fourth layer sees all), chunk=256, prefix=64, blocks=MAP.json or "
        "top=4,block=32 (blocks that the model chooses).",
    ),
    (
        "routing",
        str | None,
        None,
        "How tokens find experts, where it differs from the size's: top=1, "
        "choice=expert, gate=sigmoid, capacity=1.25 (with +capacity), balance=1e-2, "
        "z=1e-3, bias=no …, with commas.",
    ),
    ("tokenizer", str, "byte", "byte, bpe:8192, or a tokenizer.json."),
    ("held_out_fraction", float, 0.05, "Share of the text kept for evaluation."),
    ("evaluate_batches", int, 4, "Held-out batches of an evaluation."),
    (
        "xla_flags",
        str,
        "",
        "XLA flags of the run, or options of the target's compiler: a named set of the "
        "chip's, as overlap, or --xla-flags='--xla_a=1 --xla_b=2', with the sign =.",
    ),
)

_DATA = (
    "data",
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="python (text on every machine), reference (pinned files), or paths "
            "of txt, md, py, jsonl or parquet files and folders."
        ),
    ],
    dataclasses.field(default=("python",)),
)


def _one(type_: Any, help_: str) -> Any:
    return Annotated[type_, tyro.conf.arg(help=help_)]


def _many(type_: Any, help_: str) -> Any:
    return Annotated[tuple[type_, ...], tyro.conf.arg(help=help_)]


#: The flags of one run.
Words = dataclasses.make_dataclass(
    "Words",
    [
        *((n, _one(t, h), dataclasses.field(default=d)) for n, t, d, h in FLAGS),
        _DATA,
    ],
)

#: The same flags, each taking several values.
Grid = dataclasses.make_dataclass(
    "Grid",
    [
        *((n, _many(t, h), dataclasses.field(default=(d,))) for n, t, d, h in FLAGS),
        _DATA,
    ],
)


def words(asked: Any) -> dict[str, Any]:
    """The words given, as `config.configure` and `sweep.grid` take them."""
    return {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked)}


def local_devices(target: str | tuple[str, ...]) -> int | None:
    """How many devices are present, asked of another process; ``None`` if not needed.

    Asking here would start JAX in this process, and a GPU's memory with it.
    """
    if LOCAL not in target:
        return None
    code = "import jax; print(jax.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 1
