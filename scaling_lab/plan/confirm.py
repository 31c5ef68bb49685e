"""The best few put to the target's compiler, which has the last word on memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from scaling_lab.config import RunConfig
from scaling_lab.config.ask import named_flags
from scaling_lab.config.validate import PRECISIONS
from scaling_lab.layouts import parse
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.plan.answer import Choice, Plan, answered
from scaling_lab.plan.question import Question
from scaling_lab.plan.rank import Ranked
from scaling_lab.record import RunRecord

#: Compiles that may end badly for every one that is asked for; refined policies, which
#: fill the memory, are not counted.
PATIENCE = 2
#: Of a refusal, where memory is what is short.
MEMORY = "memory"
#: Two layers in a turn of their loop.
PAIRS = "scan:2"


def config_of(question: Question, choice: Choice, xla_flags: str = "") -> RunConfig:
    """The run that a choice is, as it would be trained here.

    Args:
      xla_flags: of the compiler.

    Raises:
      ValueError: it cannot be trained here yet, with what stands in the way.
    """
    model = question.shape.config
    if model is None:
        raise ValueError(
            f"{question.shape.name} is no family of this lab yet, so its layouts are "
            "predicted and cannot be compiled"
        )
    if not choice.trained:
        raise ValueError(
            f"layout {choice.layout}: runs are not trained and compiled here with "
            "optimizer state in the host's memory beside stages, experts outside fsdp, "
            "or stages that these layers do not divide into; take another of the "
            "plan's layouts"
        )
    if question.precision not in PRECISIONS:
        raise ValueError(
            f"precision {question.precision} is predicted and cannot be compiled yet; "
            f"there are {', '.join(PRECISIONS)}"
        )
    return RunConfig(
        model=model,
        layout=parse(choice.layout, question.devices),
        target=question.target.text,
        batch=question.batch,
        length=question.length,
        remat=choice.remat,
        precision=question.precision,
        accumulate=choice.microbatches,
        optimizer=OptimizerConfig(name=question.optimizer),
        size=question.shape.name,
        xla_flags=xla_flags,
    )


def cannot_compile(question: Question) -> str | None:
    """Why nothing of a question can be compiled, whatever is installed; or ``None``."""
    chip = question.target.chip
    if chip is not None and chip.compiler is None:
        return chip.no_compiler
    if question.shape.config is None:
        return f"{question.shape.name} is no family of this lab yet"
    if question.precision not in PRECISIONS:
        return f"precision {question.precision} is not compiled yet"
    return None


def confirm(
    found: Plan,
    count: int,
    compile_run: Callable[[RunConfig], RunRecord],
    tell: Callable[[str], None] = lambda _: None,
    flags: str | None = None,
) -> Plan:
    """Compiles the best until `count` of them are known to fit.

    What the compiler refuses no longer counts as fitting: the rest is ranked anew, and
    it stands last with the compiler's reason. Of a layout whose refined policy was
    refused the uniform one is ranked. The fastest of the confirmed is compiled once
    more with two layers in a turn of their loop, and keeps that if it is faster.

    Args:
      compile_run: a config's record with its ``compiled`` column.
      tell: told what is being compiled.
      flags: the compiler's, or a named set of the chip's; ``None`` for the set that
        hides communication (`Chip.planned_flags`): the clocks that predictions are
        fitted on are of software that does.

    Raises:
      ValueError: nothing of this plan can be compiled here.
    """
    heard: dict[int, Choice] = {}
    tries, target = 0, found.question.target
    if flags is None:
        flags = target.chip.planned_flags if target.chip is not None else ""
    flags = named_flags(flags, target)
    while tries < PATIENCE * count:
        confirmed = [choice for choice in heard.values() if choice.confirmed]
        rest = [c for c in found.choices if c.trained and c.index not in heard]
        if len(confirmed) >= count or not rest:
            break
        choice = rest[0]
        tries += not choice.refined
        config = config_of(found.question, choice, flags)
        tell(f"compiling {choice.layout}, {choice.microbatches} microbatches, remat "
             f"{choice.remat} for {config.target}")  # fmt: skip
        heard[choice.index] = _heard(choice, compile_run(config), flags)
        if not heard[choice.index].confirmed:
            _refuse(found.ranked, heard[choice.index])
            found = answered(found.ranked, found.top)
    if not heard:
        raise ValueError(
            "nothing of this plan can be compiled: its layouts want optimizer state on "
            "the host beside stages, experts outside fsdp, or stages that these layers "
            "do not divide into; allow more --axes, or more devices"
        )
    if faster := _in_pairs(found.question, heard, compile_run, tell):
        heard[faster.index] = faster
    choices = [_with(choice, heard.get(choice.index)) for choice in found.choices]
    refused = [choice for choice in heard.values() if not choice.confirmed]
    return dataclasses.replace(found, choices=(*choices, *refused))


def _refuse(ranked: Ranked, choice: Choice) -> None:
    """Takes out what the compiler refused, and refined policies that are as heavy.

    Those fill the memory to its predicted end, which then is not where it is.
    """
    ranked.fits[choice.index] = False
    if choice.refined and choice.reason.startswith(MEMORY):
        held = ranked.memory.hbm_bytes
        for index in ranked.remats:
            if held[index] >= held[choice.index]:
                ranked.fits[index] = False


def _in_pairs(
    question: Question,
    heard: dict[int, Choice],
    compile_run: Callable[[RunConfig], RunRecord],
    tell: Callable[[str], None],
) -> Choice | None:
    """The fastest choice with two layers in a turn of their loop, if that is faster.

    One layer's weights can then come while the other computes; a compiler moves nothing
    from one turn of a loop into another. It takes memory, and may not fit.
    """
    timed = [
        (seconds, each)
        for each in heard.values()
        if each.confirmed and (seconds := each.compiled_seconds)
    ]
    took, best = min(timed, key=lambda pair: pair[0], default=(0.0, None))
    if best is None or best.compiled is None or "stage" in best.mesh:
        return None
    flags = best.compiled["xla_flags"]
    config = config_of(question, best, flags)
    # Where one layer in several keeps what it gathered, a turn has several already.
    if config.model.L < 2 or config.layout.once_in > 1:
        return None
    tell(f"compiling {best.layout} with two layers a turn for {config.target}")
    paired = dataclasses.replace(config, stack=PAIRS)
    trial = _heard(best, compile_run(paired), flags, PAIRS)
    found = trial.compiled_seconds
    return trial if trial.confirmed and found and found < took else None


def _heard(
    choice: Choice, record: RunRecord, flags: str, stack: str = "auto"
) -> Choice:
    column: dict[str, Any] = {
        **(record.compiled or {}),
        "xla_flags": flags,
        "stack": stack,
    }
    fits = record.status == "ok" and column.get("fits") is not False
    peak = column.get("peak_bytes")
    reason = choice.reason
    if not fits:
        said = (record.reason or "no reason given").splitlines()[0]
        full = record.status in ("oom", "ok")  # it compiled, and is too large
        reason = f"{MEMORY if full else record.status}: {said}"
    return dataclasses.replace(
        choice,
        confirmed=fits,
        peak_bytes=choice.peak_bytes if peak is None else float(peak),
        reason=reason,
        compiled=column,
    )


def _with(choice: Choice, heard: Choice | None) -> Choice:
    """A choice of the new ranking with what the compiler said of it."""
    if heard is None:
        return choice
    return dataclasses.replace(
        choice,
        confirmed=heard.confirmed,
        peak_bytes=heard.peak_bytes,
        compiled=heard.compiled,
    )
