"""``scaling-lab plan``: the best layout for a model on a machine."""

from __future__ import annotations

import dataclasses
import functools
import json as json_
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to plan for."""

    family: str = "llama"
    """Model family; `scaling-lab models` lists them."""
    size: str = "8b"
    """Size of the family."""
    model: Path | None = None
    """Instead of family and size: a JSON file with a family's fields, or a Hugging Face
    config.json."""
    target: str = "tpu-v5p:4x4x4"
    """Machine: tpu-v5p:8x8x8, tpu-v6e:16x16*2, h100:8x8 (nodes x GPUs)."""
    batch_tokens: str = "4M"
    """Global batch in tokens; K, M, G are powers of 1024. Rounded to sequences."""
    length: int = 8192
    """Tokens per sequence."""
    mask: str | None = None
    """What layers see: causal, window=4096, window=4096,global=6, chunk=8192 …; by
    default what the family's do."""
    routing: str | None = None
    """How tokens find experts, where it differs from the model's own: top=1,
    capacity=1.25 …"""
    precision: str = "bfloat16"
    """Of matrix products: bfloat16, float8, int8, mxfp8, nvfp4 or float32."""
    optimizer: str = "adamw"
    """adamw, lion, muon or adafactor; its state counts in memory."""
    axes: str | None = None
    """Mesh axes that may be used, separated by commas. Default: all."""
    wide_tensor: bool = False
    """Let tensor leave the scale-up network (a node, an NVLink domain)."""
    node_gbps: float | None = None
    """Network of one node, gigabits per second one way, instead of the chip's own."""
    calibration: Path | None = None
    """Efficiencies of `scaling-lab calibrate` instead of the fitted ones."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """How to answer."""

    compile: int = 0
    """Confirm so many of the best by compiling them for the target."""
    xla_flags: str | None = None
    """Of the compiler, with --compile: flags, or a named set of the chip's; '' for its
    own. Default: the set that hides communication (ahead on GPUs, overlap on TPUs)."""
    top: int = 12
    """How many layouts to tell."""
    emit: str | None = None
    """Write the chosen layout, or the next best that can be said there and fits, as
    flags of maxtext, megatron or torchtitan."""
    choose: int = 1
    """Which row --emit writes."""
    smallest: bool = False
    """Find the smallest machine of this chip that fits, and plan for it."""
    largest_batch: bool = False
    """Find the largest batch that fits without accumulation, and plan for it."""
    chip_hours: float | None = None
    """For a budget of chip-hours: the best layout of every machine up to the target."""
    train_tokens: str | None = None
    """With --chip-hours: tokens to reach (as 2T or 500G, powers of 1024)."""
    json: tuple[Path, ...] | None = None
    """Print JSON (a list, the best first) instead of the table, or write it to a file
    beside it."""


def plan(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    answer: Annotated[Answer, tyro.conf.arg(name="")],
) -> int:
    """Find the best layouts for a model on a machine, without the machine.

    Enumerates meshes, microbatches, remat, schedules, ZeRO's stages and where optimizer
    state rests; drops the illegal and the too large; ranks by predicted step time; then
    chooses for the first what is saved, made again or offloaded, verb by verb:

        scaling-lab plan --family llama --size 70b --target tpu-v5p:8x8x8 \\
            --batch-tokens 4M --length 8192 --compile 3

    Args:
        asked: What to plan for.
        answer: How to answer.
    """
    from scaling_lab import plan as room
    from scaling_lab.cli import plan_table as table

    _check(answer)
    question = question_of(asked)
    if answer.compile and (why := room.cannot_compile(question)):
        table.say(f"not compiled, predicted only: {why}")
        answer = dataclasses.replace(answer, compile=0)
    chip = question.target.chip
    if chip is not None and not chip.flops_per_second and asked.calibration is None:
        table.say(
            f"nobody publishes a peak of {chip.name}: times are relative until you give"
            " --calibration FILE, fitted with `scaling-lab calibrate` on your records"
        )
    if answer.chip_hours is not None:
        wanted = _tokens(answer.train_tokens)
        found = room.for_budget(question, answer.chip_hours, wanted)
        if not found:
            raise ValueError(room.sizes.too_few_hours(question, wanted))
        return table.budget(found, answer)
    if answer.smallest:
        smallest = room.smallest_machine(question)
        if smallest is None:
            raise ValueError(room.sizes.too_large(question))
        question = dataclasses.replace(question, target=smallest)
    if answer.largest_batch:
        batch, layout = room.largest_batch(question)
        if not batch:
            raise ValueError(room.sizes.too_large(question))
        question = dataclasses.replace(question, batch=batch)
        table.say(f"largest batch without accumulation: {batch:,} sequences ({layout})")
    found = room.refined(room.plan(question, answer.top))
    if not found.choices:
        raise ValueError(room.sizes.too_large(question))
    if answer.compile:
        from scaling_lab.sweep import compile_run

        asker = functools.partial(compile_run, calibration=question.calibration)
        found = room.confirm(found, answer.compile, asker, table.say, answer.xla_flags)
    if answer.emit is not None:
        return _emit(found, answer)
    return table.show(found, answer)


def _check(answer: Answer) -> None:
    for name, least in (("top", 1), ("compile", 0)):
        if getattr(answer, name) < least:
            raise ValueError(f"--{name} {getattr(answer, name)}: at least {least}")


def question_of(asked: Asked) -> Any:
    """The question that the flags ask.

    Raises:
      ValueError: an unknown word, with the nearest; a batch that is no number.
    """
    from scaling_lab import plan as room

    words = {field.name: getattr(asked, field.name) for field in fields(asked)}
    return room.ask(**words)


def _tokens(text: str | None) -> float | None:
    if text is None:
        return None
    from scaling_lab.plan.question import tokens

    return tokens(text)


def _emit(found: Any, answer: Answer) -> int:
    from scaling_lab.plan import emit

    flags = emit.best(answer.emit or "", found, answer.choose)
    if not printed(flags.to_json(), answer):
        print(flags.text())
    return 0


def printed(data: Any, answer: Answer) -> bool:
    """Whether JSON was printed and is the answer; a file that is named gets it beside.

    Raises:
      ValueError: more than one file is named.
    """
    from scaling_lab.cli.plan_table import say
    from scaling_lab.data import store

    if answer.json is None:
        return False
    if len(answer.json) > 1:
        raise ValueError(f"--json takes one file, not {len(answer.json)}")
    text = json_.dumps(data, indent=1)
    if not answer.json or str(answer.json[0]) == "-":
        print(text)
        return True
    store.write(answer.json[0], text + "\n")
    say(f"written: {answer.json[0]}")
    return False
