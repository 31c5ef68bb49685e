"""The answer to a question: choices in order, one a mesh, and what did not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scaling_lab.dims import AXES
from scaling_lab.plan import law, reasons, words
from scaling_lab.plan.candidates import candidates
from scaling_lab.plan.question import Question
from scaling_lab.plan.rank import Ranked, rank


@dataclasses.dataclass(frozen=True)
class Choice:
    """One mesh with its best ZeRO stage, microbatches, remat and schedule.

    Attributes:
      layout: in the grammar of every command; see `words.layout`.
      microbatches: of a step on one replica. sequences: of one of them.
      remat: as a run writes it. schedule: of the pipeline, or ``none``.
      optimizer: where its state rests.
      step_seconds: predicted; ``step_seconds_low`` and ``_high`` hold four of five.
      tied: its interval overlaps the first's.
      confirmed: what the target's compiler says: it fits (true), it does not (false),
        or it was not asked (``None``).
      tokens_per_second_per_chip: predicted.
      peak_bytes: of one device; predicted, or the compiler's where it was asked.
      mfu_causal: model FLOPs, attention causal, over the bfloat16 peak.
      reason: why it is not the first; of the first, what it is held back by.
      zero: ZeRO's stage. mesh: axes and sizes above 1.
      host: whether optimizer state rests in the host's memory.
      trained: whether runs of this layout are trained and compiled here today.
      seconds_by: where the step's seconds go. bytes_by: what fills the memory.
      index: its place among the plan's candidates.
      refined: whether its policy was chosen verb by verb (`refine.refined`).
      compiled: the compiler's column, where it was asked.
    """

    layout: str
    microbatches: int
    sequences: int
    remat: str
    schedule: str
    optimizer: str
    step_seconds: float
    step_seconds_low: float
    step_seconds_high: float
    tied: bool
    tokens_per_second_per_chip: float
    peak_bytes: float
    mfu_causal: float
    reason: str
    trained: bool
    zero: int
    host: bool
    mesh: dict[str, int]
    seconds_by: dict[str, float]
    bytes_by: dict[str, float]
    index: int
    confirmed: bool | None = None
    compiled: dict[str, Any] | None = None
    refined: bool = False

    @property
    def compiled_seconds(self) -> float | None:
        """Of the compiled step; ``None`` where the compiler was not asked or failed."""
        return (self.compiled or {}).get("step_seconds")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        data = dataclasses.asdict(self)
        data.pop("index")
        return data


@dataclasses.dataclass(frozen=True)
class Plan:
    """An answer.

    Attributes:
      choices: what fits, the fastest first, one for every mesh.
      unfit: meshes of which nothing fits, those that would be fastest first.
      ranked: every candidate with its price. top: how many choices were asked for.
    """

    question: Question
    choices: tuple[Choice, ...]
    unfit: tuple[Choice, ...]
    ranked: Ranked
    top: int


def plan(question: Question, top: int = 20) -> Plan:
    """The best layouts for a model on a machine.

    Args:
      top: how many choices to tell.

    Raises:
      ValueError: no mesh is legal, with the laws that ruled them out.
    """
    ranked = rank(question)
    if not len(ranked.candidates):
        raise ValueError(no_mesh(question, ranked.candidates.refused))
    return answered(ranked, top)


def answered(ranked: Ranked, top: int) -> Plan:
    """The plan that priced candidates make."""
    groups = ranked.candidates.meshes()
    order = ranked.order()
    best = _first_of_groups(groups, order)[:top]
    choices = [choice_at(ranked, i, best[0], _reason(ranked, i, best[0])) for i in best]
    lightest = _lightest_unfit(ranked, groups, order)[:top]
    return Plan(
        ranked.question,
        tuple(choices),
        tuple(choice_at(ranked, i, i, reasons.of_unfit(ranked, i)) for i in lightest),
        ranked,
        top,
    )


def no_mesh(question: Question, refused: dict[str, int]) -> str:
    """What to say when no mesh is legal."""
    laws = sorted(refused.items(), key=lambda item: -item[1])
    said = "; ".join(f"{law} ({count} meshes)" for law, count in laws)
    batch = _lawful_batch(question)
    advice = "change the batch, or allow more --axes"
    if batch is not None:
        tokens = batch * question.length
        advice = f"{batch} sequences (--batch-tokens {tokens}) have legal meshes"
    return (
        f"no mesh of {question.devices} devices with axes "
        f"{', '.join(question.axes)} is legal for {question.shape.name} with "
        f"{question.batch} sequences of {question.length}: {said or 'none was tried'}; "
        f"{advice}"
    )


def _lawful_batch(question: Question) -> int | None:
    """The nearest batch that so many devices divide, if some mesh is then legal."""
    count = question.devices
    batch = max(1, round(question.batch / count)) * count
    if not len(candidates(dataclasses.replace(question, batch=batch))):
        return None
    return batch


def _first_of_groups(groups: np.ndarray, order: np.ndarray) -> list[int]:
    """The first index of every group, in the order given."""
    _, first = np.unique(groups[order], return_index=True)
    return [int(order[at]) for at in np.sort(first)]


def _lightest_unfit(ranked: Ranked, groups: np.ndarray, order: np.ndarray) -> list[int]:
    """Of layouts that never fit the lightest variant, the fastest layout first."""
    rest = np.flatnonzero(~np.isin(groups, groups[order]))
    by_time = rest[np.argsort(ranked.seconds[rest], kind="stable")]
    by_size = rest[np.argsort(ranked.memory.hbm_bytes[rest], kind="stable")]
    lightest = {int(groups[i]): i for i in _first_of_groups(groups, by_size)}
    return [lightest[int(groups[i])] for i in _first_of_groups(groups, by_time)]


def _reason(ranked: Ranked, index: int, first: int) -> str:
    if index == first:
        return _of_first(ranked, index)
    freely = {"loser": _freely(ranked, index), "first": _freely(ranked, first)}
    return reasons.of_loser(ranked, index, first, freely)


def _freely(ranked: Ranked, index: int) -> int:
    """The fastest variant of a candidate's mesh, were memory no limit."""
    table = ranked.candidates.table
    same = np.ones(len(ranked.candidates), bool)
    for name in AXES:
        same &= table[name] == table[name][index]
    own = np.flatnonzero(same)
    return int(own[np.argmin(ranked.seconds[own])])


def _of_first(ranked: Ranked, index: int) -> str:
    found = reasons.parts(ranked, index)
    rest = {name: s for name, s in found.items() if name != "products"}
    name = max(rest, key=lambda key: rest[key])
    share = 100 * rest[name] / ranked.seconds[index]
    return f"fastest; beside products it spends most on {name} ({share:.0f} %)"


def choice_at(ranked: Ranked, index: int, first: int, reason: str = "") -> Choice:
    """A candidate as a choice; it is tied where its interval meets the first's."""
    prediction, memory = ranked.prediction, ranked.memory
    table = ranked.candidates.table
    count = law.microbatches(
        ranked.question, ranked.candidates.take(np.array([index])).table
    )
    low, high = prediction.low_seconds, prediction.high_seconds
    held = memory._asdict()
    return Choice(
        layout=words.layout(ranked, index),
        microbatches=int(count[0]),
        sequences=int(table["sequences"][index]),
        remat=ranked.remat(index),
        schedule=words.schedule(ranked, index),
        optimizer=words.zero(ranked, index),
        step_seconds=float(prediction.step_seconds[index]),
        step_seconds_low=float(low[index]),
        step_seconds_high=float(high[index]),
        tied=bool(low[index] <= high[first] and low[first] <= high[index]),
        tokens_per_second_per_chip=float(prediction.tokens_per_second_per_chip[index]),
        peak_bytes=float(memory.hbm_bytes[index]),
        mfu_causal=float(prediction.mfu_causal[index]),
        reason=reason,
        trained=words.trained(ranked, index),
        zero=int(table["zero"][index]),
        host=bool(table["host"][index]),
        mesh={axis: int(table[axis][index]) for axis in AXES if table[axis][index] > 1},
        seconds_by=reasons.parts(ranked, index),
        bytes_by={name: float(column[index]) for name, column in held.items()},
        index=index,
        refined=index in ranked.remats,
    )
