"""Candidates priced and ordered: memory first, then predicted step time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from scaling_lab import models
from scaling_lab.cost import activations, kernels
from scaling_lab.cost.memory import Memory, memory
from scaling_lab.cost.points import REMATS, Points
from scaling_lab.cost.predict import Prediction, predict
from scaling_lab.cost.runs import STATE_BYTES
from scaling_lab.hardware import Chip
from scaling_lab.models.ops import EVERYTHING
from scaling_lab.plan import columns
from scaling_lab.plan.candidates import POLICIES, Candidates, candidates, policy_of
from scaling_lab.plan.law import Table
from scaling_lab.plan.question import Question

#: Candidates predicted at a time, so that a large search stays small in memory.
CHUNK = 50_000


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Candidates with their prices, in no order yet.

    Attributes:
      fits: where memory is within the limit.
      remats: policies of those that have one of their own (`refine`), by index.
      seconds: predicted step time of every candidate, fitting or not, as if it did.
    """

    question: Question
    candidates: Candidates
    points: Points
    memory: Memory
    prediction: Prediction
    fits: np.ndarray
    remats: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> np.ndarray:
        """Predicted step time."""
        return self.prediction.step_seconds

    def order(self) -> np.ndarray:
        """Indices of what fits, the fastest first; of equals the lighter."""
        found = np.flatnonzero(self.fits)
        keys = (self.memory.hbm_bytes[found], self.seconds[found])
        return found[np.lexsort(keys)]

    def remat(self, index: int) -> str:
        """A candidate's policy as a run writes it."""
        code = int(self.candidates.table["policy"][index])
        return self.remats.get(index) or policy_of(self.question, code)

    def joined(
        self,
        table: Table,
        run: Points,
        held: Memory,
        prediction: Prediction,
        remats: Iterable[str] = (),
    ) -> Ranked:
        """The same with more candidates behind, all of which fit.

        Args:
          remats: theirs in order, where they are under policies of their own.
        """
        old, count = self.candidates.table, len(self.candidates)
        both = {name: np.concatenate([old[name], table[name]]) for name in old}
        pairs = zip(self.memory, held, strict=True)
        return Ranked(
            self.question,
            Candidates(both, self.candidates.refused),
            Points.concat([self.points, run]),
            Memory(*(np.concatenate(pair) for pair in pairs)),
            _joined([self.prediction, prediction]),
            np.concatenate([self.fits, np.ones(len(run), bool)]),
            self.remats | dict(enumerate(remats, count)),
        )


def rank(question: Question) -> Ranked:
    """Enumerates, prunes and prices.

    A mesh of which nothing fits is tried once more with its optimizer state in the
    host's memory, where the chip's way there is known.
    """
    found = candidates(question)
    run = as_points(question, found)
    held, prediction = priced(question, run, host=False)
    fits = held.hbm_bytes <= question.limit_bytes
    return _with_hosts(Ranked(question, found, run, held, prediction, fits))


def _with_hosts(ranked: Ranked) -> Ranked:
    chip = ranked.question.target.chip
    meshes = ranked.candidates.meshes()
    rest = np.flatnonzero(~np.isin(meshes, meshes[ranked.fits]))
    if chip is None or chip.host_bytes_per_second is None or not len(rest):
        return ranked
    away = state_on_host(ranked.memory.take(rest), ranked.points.take(rest))
    fits = away.hbm_bytes <= ranked.question.limit_bytes
    kept = rest[fits]
    if not len(kept):
        return ranked
    waiting = _host_seconds(chip, ranked.memory.take(kept).optimizer_bytes)
    table = ranked.candidates.take(kept).table
    return ranked.joined(
        table | {"host": np.ones_like(table["host"])},
        ranked.points.take(kept),
        away.take(fits),
        _later(ranked.prediction, kept, waiting),
    )


def priced(question: Question, run: Points, host: bool) -> tuple[Memory, Prediction]:
    """What runs hold and take.

    Args:
      host: their optimizer's state rests in the host's memory.
    """
    held, found = memory(run), predicted(question, run)
    chip = question.target.chip
    if not host or chip is None:
        return held, found
    waiting = _host_seconds(chip, held.optimizer_bytes)
    return state_on_host(held, run), _later(found, np.arange(len(run)), waiting)


def _host_seconds(chip: Chip, state: np.ndarray) -> np.ndarray:
    """State is read and written once a step, when nothing else is left to do."""
    if chip.host_bytes_per_second is None:
        raise ValueError(f"{chip.name} says no rate to its host's memory")
    return 2 * state / (chip.host_bytes_per_second / chip.devices_per_chip)


def state_on_host(held: Memory, run: Points) -> Memory:
    """The same memory with the optimizer's state in the host's."""
    state = held.optimizer_bytes
    # One layer's state is on the device while it is updated, and the next on its way.
    passing = 2 * state / run.layers
    return held._replace(
        optimizer_bytes=np.zeros_like(state),
        temporary_bytes=held.temporary_bytes + passing,
    )


def _later(prediction: Prediction, index: np.ndarray, waiting: np.ndarray):
    """Some rows of a prediction, their optimizer's update so much longer."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Prediction):
        value = getattr(prediction, field.name)
        if isinstance(value, dict):
            fields[field.name] = {axis: each[index] for axis, each in value.items()}
        else:
            fields[field.name] = value[index]
    before = fields["step_seconds"]
    slower = (before + waiting) / before
    for name in ("step_seconds", "low_seconds", "high_seconds"):
        fields[name] = fields[name] * slower
    for name in ("tokens_per_second_per_chip", "mfu_causal"):
        fields[name] = fields[name] / slower
    fields["optimizer_seconds"] = fields["optimizer_seconds"] + waiting
    return Prediction(**fields)


def as_points(question: Question, found: Candidates) -> Points:
    """The candidates as columns for the cost model."""
    table = found.table
    machine = columns.machine(
        question.target, question.precision, node_gbps=question.node_gbps
    )
    width = table["tensor"]
    run = columns.points(
        question.shape,
        machine,
        seq_len=question.length,
        global_batch_tokens=question.tokens,
        microbatch_seqs=table["sequences"],
        data=table["data"],
        fsdp=table["fsdp"],
        tensor=width,
        context=table["context"],
        ulysses=table["ulysses"],
        **_kernel(question, table),
        stage=table["stage"],
        expert=table["expert"],
        zero_stage=table["zero"],
        schedule=table["schedule"],
        virtual_stages=table["pieces"],
        sequence_parallel=sequence(question, found),
        optimizer_bytes=STATE_BYTES[question.optimizer],
    )
    kept, again = np.ones(len(run)), np.zeros(len(run))
    code = np.zeros(len(run))
    for number in range(len(POLICIES)):
        mine = np.flatnonzero(table["policy"] == number)
        if not len(mine):
            continue
        part = run.take(mine)
        text = policy_of(question, number)
        kept[mine] = activations.kept_bytes(part, text) / activations.whole_bytes(part)
        again[mine] = activations.recomputed_share(part, text)
        word = text if text in REMATS else "selective"
        code[mine] = REMATS.index(word)
    return run.replace(kept=kept, recompute=again, remat=code)


def _kernel(question: Question, table: Table) -> dict[str, np.ndarray]:
    """How attention is done on one device; see `cost.kernels`."""
    chip, shape = question.target.chip, question.shape
    assert chip is not None
    rows = kernels.Rows(
        widest=getattr(shape.config, "H", shape.head_dim)
        + getattr(shape.config, "P", 0),
        narrow=question.precision != "float32",
        sight=EVERYTHING if shape.config is None else models.sight(shape.config),
        length=question.length,
        context=table["context"],
        parts=(table["context"] > 1) & (table["ulysses"] == 0),
    )
    flash, slower = kernels.attention(chip, rows)
    return {"flash": flash, "attend_times": slower}


def sequence(question: Question, found: Candidates) -> np.ndarray:
    """Where activations between blocks are divided by position over ``tensor``."""
    width = found.table["tensor"]
    own = question.length // found.table["context"]
    return (width > 1) & (own % width == 0)


def predicted(question: Question, run: Points) -> Prediction:
    """Prices of candidates' points."""
    parts = [
        predict(run.take(slice(start, start + CHUNK)), question.calibration)
        for start in range(0, max(len(run), 1), CHUNK)
    ]
    return _joined(parts)


def _joined(parts: list[Prediction]) -> Prediction:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Prediction):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], dict):
            fields[field.name] = {
                axis: np.concatenate([value[axis] for value in values])
                for axis in values[0]
            }
        elif isinstance(values[0], np.ndarray):
            fields[field.name] = np.concatenate(values)
        else:
            fields[field.name] = values[0]
    return Prediction(**fields)
