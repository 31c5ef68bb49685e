"""Everything that could be tried, as a table of integer columns.

Mesh shapes × ZeRO's stages × sequences of a microbatch × schedules × remat. Laws are
applied as soon as their columns exist, so the table never holds what cannot be.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np

from scaling_lab.cost.points import SCHEDULES
from scaling_lab.dims import AXES
from scaling_lab.layouts.legality import divisors
from scaling_lab.plan import law
from scaling_lab.plan.question import Question

#: Axes whose sizes multiply to the devices; ``expert`` is a subgroup of them.
MULTIPLIED = tuple(axis for axis in AXES if axis != "expert")

_QKV = "attention/query,attention/key,attention/value,attention/attend"
#: What the backward pass keeps, least first; verbs as `explain` lists them.
POLICIES = (
    "full",
    "save:attention/attend",
    f"save:{_QKV}",
    f"save:{_QKV},attention/out,ffn/gate,ffn/up",
    "none",
)
#: The same in a few words, for tables.
POLICY_WORDS = ("full", "save attend", "save qkv+attend", "save products", "none")
#: Sequences of a microbatch: more than this never pays, and costs memory; but the whole
#: of a replica's batch is always tried.
MOST_SEQUENCES = 64
PIECES = (2, 3, 4, 5, 6, 8)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What can be, and how much cannot.

    Attributes:
      table: columns ``data fsdp tensor context stage expert ulysses zero sequences
        schedule pieces policy host``; ``schedule`` and ``policy`` are codes,
        ``ulysses`` is 1 where attention exchanges positions for heads, and ``host``
        where optimizer state rests in the host's memory.
      refused: law -> how many meshes it ruled out (a mesh counts once).
    """

    table: law.Table
    refused: dict[str, int]

    def __len__(self) -> int:
        return len(self.table["data"])

    def meshes(self) -> np.ndarray:
        """A number for every mesh: candidates that differ in other things share it."""
        stacked = np.stack([self.table[name] for name in AXES], 1)
        return np.unique(stacked, axis=0, return_inverse=True)[1].reshape(-1)

    def take(self, index: np.ndarray) -> Candidates:
        """The rows at an index."""
        return Candidates({k: v[index] for k, v in self.table.items()}, self.refused)


def candidates(question: Question) -> Candidates:
    """Every legal candidate of a question."""
    refused: Counter[str] = Counter()
    table = _meshes(question)
    table = _lawful(table, law.of_meshes(question, table), refused)
    table = _crossed(table, ulysses=(0, 1))
    table = _lawful(table, law.of_attention(question, table))
    table = _crossed(table, zero=(0, 1, 2, 3))
    table = _lawful(table, law.of_state(question, table))
    table = _crossed(table, sequences=_sequences(question))
    fits = law.microbatches(question, table) * table["sequences"]
    whole = fits * table["data"] * table["fsdp"] == question.batch
    table = {name: column[whole] for name, column in table.items()}
    table = _scheduled(table)
    table = _lawful(table, law.of_stages(question, table))
    table = _crossed(table, policy=range(len(POLICIES)))
    table = _offered(question, table)
    table["host"] = np.zeros_like(table["policy"])
    return Candidates(table, dict(refused))


def _meshes(question: Question) -> law.Table:
    axes = [axis for axis in MULTIPLIED if axis in question.axes]
    experts = [1]
    if "expert" in question.axes and question.shape.n_experts:
        experts = divisors(question.shape.n_experts)
    rows = [
        (*sizes, expert)
        for sizes in _factors(question.devices, len(axes))
        for expert in experts
        if question.devices % expert == 0
    ]
    made = np.array(rows, dtype=np.int64).reshape(-1, len(axes) + 1)
    table = {axis: np.ones(len(made), np.int64) for axis in AXES}
    return table | {axis: made[:, i] for i, axis in enumerate([*axes, "expert"])}


def _factors(count: int, axes: int) -> Iterable[tuple[int, ...]]:
    """Every way to write a number as an ordered product."""
    if axes == 0:
        if count == 1:
            yield ()
        return
    if axes == 1:
        yield (count,)
        return
    for first in divisors(count):
        for rest in _factors(count // first, axes - 1):
            yield (first, *rest)


def _sequences(question: Question) -> list[int]:
    batch = question.batch
    return [
        size
        for size in divisors(batch)
        if size <= MOST_SEQUENCES or batch // size <= question.devices
    ]


def _scheduled(table: law.Table) -> law.Table:
    """The schedules of a pipeline, and of what is none the plain one."""
    code = {name: number for number, name in enumerate(SCHEDULES)}
    plain = [(code["1f1b"], 1)]
    piped = [*plain, (code["gpipe"], 1), (code["zero_bubble"], 1)]
    piped += [(code["interleaved"], pieces) for pieces in PIECES]
    parts = []
    for mask, choices in ((table["stage"] == 1, plain), (table["stage"] > 1, piped)):
        part = {name: column[mask] for name, column in table.items()}
        part = _crossed(part, choice=range(len(choices)))
        chosen = np.array(choices)[part.pop("choice")]
        parts.append(part | {"schedule": chosen[:, 0], "pieces": chosen[:, 1]})
    return {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}


def policy_of(question: Question, code: int) -> str:
    """A policy as a run writes it, in the verbs that this model has."""
    policy, shape = POLICIES[code], question.shape
    if shape.n_experts:
        return policy.replace("ffn/", "ffn/experts/")
    return policy if shape.gated else policy.replace("ffn/gate,", "")


def uniform(question: Question) -> list[str]:
    """The policies of candidates, as runs write them."""
    return [policy_of(question, code) for code in range(len(POLICIES))]


def _offered(question: Question, table: law.Table) -> law.Table:
    """Without the policies that name verbs which some blocks lack: of a model with
    dense blocks beside those with experts, or experts that all tokens share."""
    shape = question.shape
    mixed = shape.n_experts > 0 and (shape.dense_layers > 0 or shape.shared_d_ff > 0)
    lacks = ["ffn/" in policy and mixed for policy in POLICIES]
    keep = ~np.array(lacks)[table["policy"]]
    return {name: column[keep] for name, column in table.items()}


def _crossed(table: law.Table, **column: Iterable[int]) -> law.Table:
    """Every row with every value of one more column."""
    ((name, values),) = column.items()
    chosen = np.array(list(values), dtype=np.int64)
    count = len(next(iter(table.values())))
    grown = {n: np.repeat(c, len(chosen)) for n, c in table.items()}
    return grown | {name: np.tile(chosen, count)}


def _lawful(
    table: law.Table, laws: Iterable[law.Law], refused: Counter[str] | None = None
) -> law.Table:
    """The rows that break no law; the first that a row breaks is counted."""
    legal = np.ones(len(next(iter(table.values()))), bool)
    for said, broken in laws:
        fresh = int(np.sum(legal & broken))
        if fresh and refused is not None:
            refused[said] += fresh
        legal &= ~broken
    return {name: column[legal] for name, column in table.items()}
