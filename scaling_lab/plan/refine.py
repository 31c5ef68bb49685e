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
import itertools

import numpy as np

from scaling_lab.config import RunConfig
from scaling_lab.cost import activations
from scaling_lab.cost.memory import memory
from scaling_lab.cost.points import REMATS, Points
from scaling_lab.parallel import policies as written
from scaling_lab.plan.answer import Choice, Plan
from scaling_lab.plan.rank import predicted

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

#: Microbatches of a step that are tried.
MICROBATCHES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Refined:
    """A policy of one layout with its price.

    Attributes:
      remat: as a run writes it. microbatches: of a step.
      gather: of the layout: ``layer``, or ``step`` where gathered weights are kept.
      step_seconds: predicted. hbm_bytes: of one device.
    """

    remat: str
    microbatches: int
    gather: str
    step_seconds: float
    hbm_bytes: float

    def of(self, config: RunConfig) -> RunConfig:
        """A run of the layout under this policy."""
        layout = config.layout
        if self.gather != layout.gather:
            name = f"{layout.name}+gather_once"
            layout = dataclasses.replace(layout, gather=self.gather, name=name)
        return dataclasses.replace(
            config, remat=self.remat, accumulate=self.microbatches, layout=layout
        )


def policies(found: Plan, choice: Choice, count: int = 3) -> list[Refined]:
    """The best policies of a choice that fit, of every kind, the fastest first.

    A kind is a number of microbatches, a way to keep (everything, by name, in the
    host's memory too) and a way to gather: what hides behind what is the compiler's to
    say. Within a kind each is a tenth lighter than the one before: what is predicted to
    fit may not, and the compiler is asked next about one that holds less.

    Args:
      count: how many at most, of each kind.
    """
    run = found.ranked.points.take(choice.index)
    own = float(run.microbatches[0] * run.microbatch_seqs[0])
    counts = [n for n in MICROBATCHES if own % n == 0]
    if "stage" in choice.mesh:  # a pipeline has its own reasons for as many
        counts = [choice.microbatches]
    gathers = ["layer"]
    if run.fsdp[0] > 1 and run.zero_stage[0] == 3:
        gathers.append("step")
    chosen: list[Refined] = []
    for number, gather in itertools.product(counts, gathers):
        part = run.replace(
            microbatch_seqs=own / number, gathers=1.0 if gather == "step" else 2.0
        )
        how = (number, gather)
        whole, named = (
            _of(found, part, how, texts)[:count]
            for texts in (["none", "full"], _here(found))
        )
        chosen += [*whole, *named]
        if _has_host(found):
            away = _of(found, part, how, _away(found))
            chosen += [each for each in away if _gains(each, named)][:count]
    return sorted(chosen, key=lambda each: each.step_seconds)


def _of(
    found: Plan, run: Points, how: tuple[int, str], texts: list[str]
) -> list[Refined]:
    """Policies that fit in order of their time, each lighter than the one before."""
    runs = _under(run, texts)
    held, step = memory(runs).hbm_bytes, predicted(found.question, runs).step_seconds
    fits = np.flatnonzero(held <= found.question.limit_bytes)
    chosen: list[Refined] = []
    for i in fits[np.lexsort((held[fits], step[fits]))]:
        if not chosen or held[i] <= LIGHTER * chosen[-1].hbm_bytes:
            chosen.append(Refined(texts[i], *how, float(step[i]), float(held[i])))
    return chosen


def _names(found: Plan) -> list[str]:
    shape = found.question.shape
    names = [name for name in KEPT if shape.gated or name != "ffn/gate"]
    if not shape.n_experts:
        return names
    routed = () if shape.dense_layers or shape.shared_d_ff else ROUTED
    return [name for name in names if not name.startswith("ffn/")] + list(routed)


def _here(found: Plan) -> list[str]:
    """Every choice of what is saved."""
    names = _names(found)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(names, size) for size in range(1, len(names) + 1)
    )
    return [written.Policy("save", subset).text for subset in subsets]


def _away(found: Plan) -> list[str]:
    """Every choice of what is saved and what the host's memory holds."""
    names = _names(found)
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
    return texts


def _has_host(found: Plan) -> bool:
    chip = found.question.target.chip
    return chip is not None and chip.host_bytes_per_second is not None


def _gains(away: Refined, here: list[Refined]) -> bool:
    """Whether the host's memory is worth asking about."""
    return not here or away.step_seconds < here[0].step_seconds


def _under(run: Points, texts: list[str]) -> Points:
    """One run under each of some policies."""
    every = run.take(np.zeros(len(texts), int))
    price = _Price(run)
    kept, offload, again = map(np.array, zip(*map(price.of, texts), strict=True))
    code = [REMATS.index(text if text in REMATS else "selective") for text in texts]
    return every.replace(kept=kept, offload=offload, recompute=again, remat=code)


class _Price:
    """What `activations` says of one run's policies, each verb looked up once."""

    def __init__(self, run: Points) -> None:
        self.run = run
        self.whole = float(activations.whole_bytes(run)[0])
        self.least = float(activations.input_bytes(run)[0])
        names = activations.verbs(run)
        self.bytes_of = {n: float(activations.verb_bytes(run, n)[0]) for n in names}
        total = sum(float(verb.flops[0]) for verb in names.values())
        self.share_of = {n: float(v.flops[0]) / total for n, v in names.items()}
        self.again = float(activations.recomputed_share(run, "full")[0])

    def of(self, text: str) -> tuple[float, float, float]:
        """The share kept, of that what the host holds, and what is done again."""
        if text == "none":
            return 1.0, 0.0, 0.0
        policy = written.parse(text)
        away = sum(self.bytes_of[name] for name in policy.offloaded)
        kept = self.least + sum(self.bytes_of[name] for name in policy.kept)
        again = self.again - sum(self.share_of[name] for name in policy.kept)
        return kept / self.whole, away / kept, again
