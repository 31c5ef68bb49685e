"""The question's neighbours: the smallest machine, the largest batch, a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from scaling_lab.cost.memory import memory
from scaling_lab.hardware import Chip, Target, chip, parse_target
from scaling_lab.plan import words
from scaling_lab.plan.answer import Choice, plan
from scaling_lab.plan.candidates import candidates
from scaling_lab.plan.question import Question
from scaling_lab.plan.rank import as_points, state_on_host

#: Nodes of a GPU cluster that are tried: powers of two.
MOST_NODES = 1024
#: Slices of the largest torus that are tried beyond one.
SLICES = (2, 4, 8, 16, 32, 64)
#: Sequences of a microbatch that the largest batch is looked for up to.
MOST_SEQUENCES = 2**20


@dataclasses.dataclass(frozen=True)
class Best:
    """A machine with its best layout.

    Attributes:
      tokens: trained on within the budget, or asked for. chip_hours: that takes.
      hours: on the clock.
    """

    target: Target
    choice: Choice
    tokens: float
    chip_hours: float
    hours: float


def smallest_machine(question: Question) -> Target | None:
    """The fewest chips of the question's kind on which some layout fits.

    ``None`` where even the largest machine that is tried is too small.
    """
    for target in machines(question.target.chip):
        asked = dataclasses.replace(question, target=target)
        if asked.limit_bytes * asked.devices < _least(asked):
            continue
        if lightest(asked)[0] <= asked.limit_bytes:
            return target
    return None


def lightest(question: Question) -> tuple[float, str]:
    """Bytes a device of the candidate that needs least, and its layout.

    Infinite where no candidate is legal.
    """
    found = candidates(question)
    if not len(found):
        return math.inf, ""
    run = as_points(question, found)
    priced = memory(run)
    needs, where = priced.hbm_bytes, ""
    chip = question.target.chip
    if chip is not None and chip.host_bytes_per_second is not None:
        away = state_on_host(priced, run).hbm_bytes
        if away.min() < needs.min():
            needs, where = away, words.AWAY
    index = int(np.argmin(needs))
    return float(needs[index]), words.layout_of(question, found, index) + where


def too_large(question: Question) -> str:
    """What to say of a model that fits at no layout: by how much, and what would do."""
    needs, layout = lightest(question)
    said = f"{question.shape.name} does not fit on {question.target.text}: "
    if math.isinf(needs):
        said += "no layout of it is legal"
    else:
        over = needs - question.limit_bytes
        said += (
            f"its lightest layout ({layout}) needs {words.size(needs)} a device, "
            f"{words.size(over)} more than the {words.size(question.limit_bytes)} there"
        )
    smallest = smallest_machine(question)
    if smallest is None:
        return said + f"; nor on any larger machine of {_name(question.target.chip)}"
    return said + f"; the smallest machine that would do is {smallest.text}"


def largest_batch(question: Question) -> tuple[int, str]:
    """The most sequences one step can hold at once, without accumulation.

    Returns:
      the batch and a layout that holds it; 0 where not one sequence fits.
    """
    # A batch that every mesh divides: the law of the batch then rules nothing out.
    open_ = dataclasses.replace(question, batch=question.devices)
    found = candidates(dataclasses.replace(open_, axes=_unpiped(question)))
    one = np.flatnonzero(found.table["sequences"] == 1)
    found = found.take(one)
    if not len(found):
        return 0, ""
    run = as_points(open_, found)
    replicas = found.table["data"] * found.table["fsdp"]
    low, high = np.zeros(len(run)), np.full(len(run), float(MOST_SEQUENCES))
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        whole = middle * replicas * question.length
        tried = run.replace(microbatch_seqs=middle, global_batch_tokens=whole)
        fits = memory(tried).hbm_bytes <= question.limit_bytes
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    held = low * replicas
    index = int(np.argmax(held))
    return int(held[index]), words.layout_of(open_, found, index)


def for_budget(
    question: Question, chip_hours: float, tokens: float | None = None
) -> list[Best]:
    """The best layout of every machine up to the question's, for a fixed budget.

    Args:
      chip_hours: to spend. tokens: to train on; ``None`` asks for as many as can be.

    Returns:
      with `tokens`, what reaches them within the budget, the earliest first; without,
      what reaches most tokens first.
    """
    if not chip_hours > 0:
        raise ValueError(f"chip_hours={chip_hours}: must be above 0")
    most = question.target.chips or 1
    found = []
    for target in machines(question.target.chip):
        if target.chips is None or target.chips > most:
            continue
        asked = dataclasses.replace(question, target=target)
        if asked.limit_bytes * asked.devices < _least(asked):
            continue
        try:
            choices = plan(asked, top=1).choices
        except ValueError:  # no legal mesh of so many devices
            continue
        if choices:
            found.append(_best(target, choices[0], chip_hours, tokens))
    if tokens is None:
        return sorted(found, key=lambda best: -best.tokens)
    within = [best for best in found if best.chip_hours <= chip_hours]
    return sorted(within, key=lambda best: best.hours)


def too_few_hours(question: Question, tokens: float | None) -> str:
    """What to say of a budget that no machine up to the question's gets along with."""
    found = for_budget(question, math.inf, tokens)
    if not found or tokens is None:
        return too_large(question)
    best = min(found, key=lambda each: each.chip_hours)
    return (
        f"too few chip-hours for {tokens:,.0f} tokens: the cheapest machine up to "
        f"{question.target.text} takes {best.chip_hours:,.0f} of them "
        f"({best.target.text}, {best.choice.layout})"
    )


def machines(chip: Chip | None) -> Iterator[Target]:
    """Machines of a chip, rising: one torus for every size, or nodes of GPUs."""
    if chip is None:
        return
    if chip.torus_dims:
        by_size: dict[int, tuple[int, ...]] = {}
        for shape in chip.topologies():
            known = by_size.setdefault(math.prod(shape), shape)
            if max(shape) < max(known):
                by_size[math.prod(shape)] = shape
        yield from (Target(chip, by_size[size]) for size in sorted(by_size))
        yield from (Target(chip, by_size[max(by_size)], count) for count in SLICES)
        return
    joined = chip.scale_up_chips
    if joined is None:
        yield from (Target(chip, (2**power,)) for power in range(11))
        return
    inside = [2**power for power in range(11) if 2 ** (power + 1) <= joined]
    yield from (Target(chip, (1, size)) for size in inside)
    # Of an NVLink domain of 72 people use 64: what they divide is a power of two.
    used, nodes = 2 ** int(math.log2(joined)), 1
    while nodes <= MOST_NODES:
        yield Target(chip, (nodes, used))
        nodes *= 2


def machine_of(text: str, chips: int | None = None) -> str:
    """A target's text: as it is, or so many of a chip.

    Raises:
      ValueError: unknown chip; no machine of so many, with the nearest; neither number
        nor topology.
    """
    name = text.partition(":")[0]
    if chips is None:
        if ":" not in text:
            raise ValueError(
                f"target {text!r} says no number of chips; give --chips, or a topology"
            )
        return text
    if ":" in text:
        if parse_target(text).chips == chips:
            return text
        raise ValueError(
            f"target {text!r} has {parse_target(text).chips} chips; leave --chips "
            f"{chips} out, or the topology"
        )
    known = {target.chips: target for target in machines(chip(name))}
    if chips not in known:
        near = sorted((n for n in known if n), key=lambda n: abs(n - chips))[:3]
        raise ValueError(
            f"no machine of {chips} {name} is known; nearest: "
            f"{', '.join(f'{n} ({known[n].text})' for n in near)}, or write a topology"
        )
    return known[chips].text


def _best(
    target: Target, choice: Choice, chip_hours: float, tokens: float | None
) -> Best:
    rate = choice.tokens_per_second_per_chip * 3600
    reached = rate * chip_hours if tokens is None else tokens
    spent = reached / rate
    return Best(target, choice, reached, spent, spent / (target.chips or 1))


def _least(question: Question) -> float:
    """Bytes that weights and their state take on all devices together, at least."""
    return 8 * question.shape.params


def _unpiped(question: Question) -> tuple[str, ...]:
    return tuple(axis for axis in question.axes if axis != "stage")


def _name(chip: Chip | None) -> str:
    return chip.name if chip is not None else "this machine"
