"""One grammar: the words of ``scaling-lab plan`` as a question."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from scaling_lab import models
from scaling_lab.cost import calibrations
from scaling_lab.cost.points import PRECISIONS
from scaling_lab.cost.runs import STATE_BYTES
from scaling_lab.hardware import parse_target
from scaling_lab.names import one_of
from scaling_lab.plan.answer import Plan, plan
from scaling_lab.plan.question import Question, sequences
from scaling_lab.plan.refine import refined
from scaling_lab.plan.shape import of_config, read, routed, seeing

#: What people type for a precision.
_SHORT = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "tf32": "float32",
    "fp8": "float8",
    "fp4": "nvfp4",
}


def ask(
    family: str = "llama",
    size: str = "8b",
    target: str = "tpu-v5p:4x4x4",
    *,
    batch_tokens: str | int = "4M",
    length: int = 8192,
    model: str | Path | None = None,
    calibration: str | Path | None = None,
    **words: Any,
) -> Question:
    """A question from words, as the command takes them.

    Args:
      family, size: of the model. model: a JSON file instead; see `shape.read`.
      target: the machine on paper.
      batch_tokens: of a step, rounded to whole sequences; ``4M`` is 4·2^20.
      length: tokens per sequence.
      calibration: a file of `scaling-lab calibrate`.
      words: ``precision``, ``optimizer``, ``node_gbps``, ``axes``, ``wide_tensor``,
        as `Question` has them; ``axes`` may be text with commas. ``mask`` says what
        layers see, ``routing`` how tokens find experts: `shape.seeing`,
        `shape.routed`.

    Raises:
      ValueError: an unknown word, with the nearest that are known.
    """
    known = ["mask", "routing", *(field.name for field in dataclasses.fields(Question))]
    for word in words:
        one_of("word", word, known)
    given = {word: value for word, value in words.items() if value is not None}
    if isinstance(axes := given.get("axes"), str):
        given["axes"] = tuple(axis.strip() for axis in axes.split(",") if axis.strip())
    if "precision" in given:
        given["precision"] = _SHORT.get(given["precision"], given["precision"])
    one_of("precision", given.get("precision", "bfloat16"), PRECISIONS)
    one_of("optimizer", given.get("optimizer", "adamw"), STATE_BYTES)
    if model is not None:
        shape = read(model)
    else:
        shape = of_config(models.size(family, size))
        shape = dataclasses.replace(shape, name=f"{family} {size}")
    if (mask := given.pop("mask", None)) is not None:
        shape = seeing(shape, mask)
    if (routing := given.pop("routing", None)) is not None:
        shape = routed(shape, routing)
    return Question(
        shape=shape,
        target=parse_target(target),
        batch=sequences(batch_tokens, length),
        length=length,
        calibration=None if calibration is None else calibrations.read(calibration),
        **given,
    )


def best_layouts(*words: str, top: int = 12, **named: Any) -> Plan:
    """The best layouts for a model on a machine: `ask`, `plan`, then `refined`.

    >>> import scaling_lab as lab
    >>> found = lab.best_layouts("llama", "70b", "tpu-v5p:8x8x8")  # doctest: +SKIP
    >>> found.choices[0].layout  # doctest: +SKIP

    Raises:
      ValueError: an unknown word; no legal mesh.
    """
    return refined(plan(ask(*words, **named), top))
