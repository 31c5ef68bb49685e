"""What a layout keeps for its backward pass, verb by verb, under its memory.

A plan ranks layouts with a few uniform policies. Of one layout every choice can be
priced, verb by verb: to save its result, to make it again, or to keep it in the host's
memory; and of its weights, whether what was gathered is kept or gathered again. Each
trades bytes that are held against FLOPs that are done again and bytes that are moved
(Chen et al. 2016, section 4; the choice is Checkmate's, Jain et al. 2020, in a space
small enough to look through; the host's memory is vDNN's, Rhu et al. 2016).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from scaling_lab.config import RunConfig
from scaling_lab.cost import activations
from scaling_lab.cost.points import REMATS, Points
from scaling_lab.layouts import parse
from scaling_lab.models import widths
from scaling_lab.parallel import policies as written
from scaling_lab.plan.answer import Choice, Plan, answered
from scaling_lab.plan.rank import priced
from scaling_lab.plan.words import ONCE, once

#: What a policy may keep beside a block's input: results of products, and attention's.
#: The last product's result is the next block's input, and norms cost next to nothing.
KEPT = (
    *("attention/query", "attention/key", "attention/value", "attention/attend"),
    *("attention/out", "ffn/gate", "ffn/up"),
)
#: The same of experts, in place of the feed-forward; rows that were sent as well.
ROUTED = (
    *("ffn/experts/sent", "ffn/experts/gate", "ffn/experts/up", "ffn/experts/down"),
)

#: Of these the host's memory may hold what kernels and experts do not.
AWAY = tuple(name for name in KEPT if name != "attention/attend")

#: The memory of each policy beside that of the one before.
LIGHTER = 0.9

#: Of so many layers one keeps what it gathered, where that is tried.
KEEPERS = (1, 2, 4, 8)

#: Microbatches of a step that are tried.
MICROBATCHES = (1, 2, 4)

#: Of a ranking so many of the first are refined: as many as a table shows.
SHOWN = 12

#: A policy is faster than another by more than what rounding makes.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Refined:
    """A policy of one layout with its price.

    Attributes:
      remat: as a run writes it. microbatches: of a step.
      once_in: of how many layers one keeps what it gathered; 0 where none does.
      step_seconds: predicted. hbm_bytes: of one device.
    """

    remat: str
    microbatches: int
    once_in: int
    step_seconds: float
    hbm_bytes: float

    def of(self, config: RunConfig) -> RunConfig:
        """A run of the layout under this policy."""
        layout = config.layout
        if self.once_in != layout.once_in:
            layout = parse(layout.name.partition(ONCE)[0] + once(self.once_in))
        return dataclasses.replace(
            config, remat=self.remat, accumulate=self.microbatches, layout=layout
        )


def refined(found: Plan) -> Plan:
    """The plan with its first choices under the best of their policies, ordered anew.

    A choice whose own policy nothing beats stays. The others become candidates beside
    those they come from, so what refuses one of them finds the uniform policy next.
    """
    better = [_better(found, choice) for choice in found.choices[:SHOWN]]
    pairs = [
        (choice, each)
        for choice, each in zip(found.choices[:SHOWN], better, strict=True)
        if each is not None
    ]
    if not pairs:
        return found
    ranked = found.ranked
    for choice, each in pairs:
        part = _run(found, choice, each.microbatches, each.once_in)
        run = _under(part, _Policies.of([each.remat]))
        table = ranked.candidates.take(np.array([choice.index])).table
        table = table | {"sequences": part.microbatch_seqs.astype(np.int64)}
        held, prediction = priced(found.question, run, choice.host)
        ranked = ranked.joined(table, run, held, prediction, [each.remat])
    return answered(ranked, found.top)


def _better(found: Plan, choice: Choice) -> Refined | None:
    """The best policy of a choice, if it is faster than the choice's own."""
    counts = {*MICROBATCHES, choice.microbatches}
    best = next(iter(policies(found, choice, 1, sorted(counts))), None)
    if best is None or best.step_seconds >= choice.step_seconds * (1 - ROUNDING):
        return None
    return best


def policies(
    found: Plan,
    choice: Choice,
    count: int = 3,
    microbatches: Iterable[int] = MICROBATCHES,
) -> list[Refined]:
    """The best policies of a choice that fit, of every kind, the fastest first.

    A kind is a number of microbatches, a way to keep (everything, by name, in the
    host's memory too) and a way to gather: what hides behind what is the compiler's to
    say. Within a kind each is a tenth lighter than the one before: what is predicted to
    fit may not, and the compiler is asked next about one that holds less.

    Args:
      count: how many at most, of each kind.
      microbatches: how many are tried, where they divide a replica's sequences.
    """
    run = found.ranked.points.take(choice.index)
    counts = [n for n in microbatches if _sequences(run) % n == 0]
    if "stage" in choice.mesh:  # a pipeline has its own reasons for as many
        counts = [choice.microbatches]
    chosen: list[Refined] = []
    for number, once_in in itertools.product(counts, _keepers(found, choice, run)):
        part, how = _run(found, choice, number, once_in), (number, once_in)
        whole, named = (
            _of(found, part, how, texts, choice.host)[:count]
            for texts in (_Policies.of(["none", "full"]), _here(_names(found)))
        )
        chosen += [*whole, *named]
        if _has_host(found):
            away = _of(found, part, how, _away(_names(found)), choice.host)
            chosen += [each for each in away if _gains(each, named)][:count]
    return sorted(chosen, key=lambda each: each.step_seconds)


def _sequences(run: Points) -> float:
    """Of one replica in a step."""
    return float(run.microbatches[0] * run.microbatch_seqs[0])


def _keepers(found: Plan, choice: Choice, run: Points) -> list[int]:
    """Of how many layers one may keep what it gathered: 0 for none, and then more.

    A stage keeps what is of all its layers; layers of one kind are whole groups.
    """
    if run.fsdp[0] == 1 or run.zero_stage[0] != 3:
        return [0]
    shape = found.question.shape
    known = shape.config is not None
    depths = widths(shape.config, "L") if known else (shape.layers,)
    groups = [n for n in KEEPERS if all(depth % n == 0 for depth in depths)]
    return [0, 1] if "stage" in choice.mesh else [0, *groups]


def _run(found: Plan, choice: Choice, microbatches: int, once_in: int) -> Points:
    """A choice in so many microbatches, where one in so many layers keeps weights."""
    run = found.ranked.points.take(choice.index)
    return run.replace(
        microbatch_seqs=_sequences(run) / microbatches,
        gathers=2.0 - (1 / once_in if once_in else 0.0),
    )


class _Policies(NamedTuple):
    """Policies, of which each keeps some of the verbs of a block.

    Attributes:
      texts: as a run writes them.
      kept, away: verb -> where its result is kept, and kept in the host's memory.
    """

    texts: tuple[str, ...]
    kept: dict[str, np.ndarray]
    away: dict[str, np.ndarray]

    @classmethod
    def of(cls, texts: Iterable[str]) -> _Policies:
        """Of texts."""
        texts = tuple(texts)
        read = [written.parse(text) for text in texts]
        kept, away = (
            {name: np.array([name in own for own in names]) for name in _every(names)}
            for names in ([one.kept for one in read], [one.offloaded for one in read])
        )
        return cls(texts, kept, away)


def _every(names: list[tuple[str, ...]]) -> list[str]:
    """Each name once, in the order in which they come."""
    return list(dict.fromkeys(itertools.chain.from_iterable(names)))


def _of(
    found: Plan, run: Points, how: tuple[int, int], named: _Policies, host: bool
) -> list[Refined]:
    """Policies that fit in order of their time, each lighter than the one before."""
    filled, prediction = priced(found.question, _under(run, named), host)
    held, step, texts = filled.hbm_bytes, prediction.step_seconds, named.texts
    fits = np.flatnonzero(held <= found.question.limit_bytes)
    chosen: list[Refined] = []
    for i in fits[np.lexsort((held[fits], step[fits]))]:
        if not chosen or held[i] <= LIGHTER * chosen[-1].hbm_bytes:
            chosen.append(Refined(texts[i], *how, float(step[i]), float(held[i])))
    return chosen


def _names(found: Plan) -> tuple[str, ...]:
    shape = found.question.shape
    names = tuple(name for name in KEPT if shape.gated or name != "ffn/gate")
    if not shape.n_experts:
        return names
    routed = () if shape.dense_layers or shape.shared_d_ff else ROUTED
    return (*(name for name in names if not name.startswith("ffn/")), *routed)


@functools.lru_cache
def _here(names: tuple[str, ...]) -> _Policies:
    """Every choice of what is saved."""
    subsets = itertools.chain.from_iterable(
        itertools.combinations(names, size) for size in range(1, len(names) + 1)
    )
    return _Policies.of(written.Policy("save", subset).text for subset in subsets)


@functools.lru_cache
def _away(names: tuple[str, ...]) -> _Policies:
    """Every choice of what is saved and what the host's memory holds."""
    places = [("", "save", "away") if name in AWAY else ("", "save") for name in names]
    texts = []
    for chosen in itertools.product(*places):
        pairs = list(zip(names, chosen, strict=True))
        saved, away = (
            tuple(name for name, place in pairs if place == word)
            for word in ("save", "away")
        )
        if away:
            texts.append(written.Policy("save", saved, away).text)
    return _Policies.of(texts)


def _has_host(found: Plan) -> bool:
    chip = found.question.target.chip
    return chip is not None and chip.host_bytes_per_second is not None


def _gains(away: Refined, here: list[Refined]) -> bool:
    """Whether the host's memory is worth asking about."""
    return not here or away.step_seconds < here[0].step_seconds


def _under(run: Points, named: _Policies) -> Points:
    """One run under each of some policies.

    What `activations` says of each, every verb looked up once.
    """
    texts, verbs = named.texts, activations.verbs(run)
    total = sum(float(verb.flops[0]) for verb in verbs.values())
    held = np.full(len(texts), float(activations.input_bytes(run)[0]))
    again = np.full(len(texts), float(activations.recomputed_share(run, "full")[0]))
    away = np.zeros(len(texts))
    for name, where in named.kept.items():
        held = held + where * float(activations.verb_bytes(run, name)[0])
        # Without a kernel its scores were not kept, and they are half of attention.
        spared = 0.5 if name == "attention/attend" and not run.flash[0] else 1.0
        again = again - where * spared * float(verbs[name].flops[0]) / total
    for name, where in named.away.items():
        away = away + where * float(activations.verb_bytes(run, name)[0])
    whole, every = float(activations.whole_bytes(run)[0]), np.array(texts) == "none"
    code = [REMATS.index(text if text in REMATS else "selective") for text in texts]
    return run.take(np.zeros(len(texts), int)).replace(
        kept=np.where(every, 1.0, held / whole),
        offload=away / held,
        recompute=np.where(every, 0.0, again),
        remat=code,
    )
