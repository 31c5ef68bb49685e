"""What a layout keeps for its backward pass, verb by verb, under its memory.

A plan ranks layouts with a few uniform policies. Of one layout all subsets of a block's
verbs can be priced: each trades bytes that are kept against FLOPs that are done again
(Chen et al. 2016, section 4; the choice is Checkmate's, Jain et al. 2020, in a space
small enough to look through).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from scaling_lab.cost import activations
from scaling_lab.cost.memory import memory
from scaling_lab.cost.points import REMATS, Points
from scaling_lab.plan.answer import Choice, Plan
from scaling_lab.plan.rank import predicted

#: What a policy may keep beside a block's input: results of products, and attention's.
#: The last product's result is the next block's input, and norms cost next to nothing.
KEPT = (
    *("attention/query", "attention/key", "attention/value", "attention/attend"),
    *("attention/out", "ffn/gate", "ffn/up"),
)

#: The memory of each policy beside that of the one before.
LIGHTER = 0.9


#: Microbatches of a step that are tried.
MICROBATCHES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Refined:
    """A policy of one layout with its price.

    Attributes:
      remat: as a run writes it. microbatches: of a step.
      step_seconds: predicted. hbm_bytes: of one device.
    """

    remat: str
    microbatches: int
    step_seconds: float
    hbm_bytes: float


def policies(found: Plan, choice: Choice, count: int = 3) -> list[Refined]:
    """The best policies of a choice that fit, the fastest first, each a tenth lighter.

    What is predicted to fit may not: the compiler is asked next about one that holds
    less, not about one that is as heavy. Of each number of microbatches there is one at
    least, where one fits.

    Args:
      count: how many at most, of each number of microbatches.
    """
    run = found.ranked.points.take(choice.index)
    own = float(run.microbatches[0] * run.microbatch_seqs[0])
    counts = [n for n in MICROBATCHES if own % n == 0]
    if "stage" in choice.mesh:  # a pipeline has its own reasons for as many
        counts = [choice.microbatches]
    chosen: list[Refined] = []
    for number in counts:
        chosen += _of(found, run.replace(microbatch_seqs=own / number), number)[:count]
    return sorted(chosen, key=lambda each: each.step_seconds)


def _of(found: Plan, run: Points, microbatches: int) -> list[Refined]:
    texts = _texts(found)
    runs = Points.concat([_under(run, text) for text in texts])
    held, step = memory(runs).hbm_bytes, predicted(found.question, runs).step_seconds
    fits = np.flatnonzero(held <= found.question.limit_bytes)
    chosen: list[Refined] = []
    for i in fits[np.lexsort((held[fits], step[fits]))]:
        if not chosen or held[i] <= LIGHTER * chosen[-1].hbm_bytes:
            size, seconds = float(held[i]), float(step[i])
            chosen.append(Refined(texts[i], microbatches, seconds, size))
    return chosen


def _texts(found: Plan) -> list[str]:
    shape = found.question.shape
    names = [
        name
        for name in KEPT
        if not (name.startswith("ffn/") and shape.n_experts)
        and not (name == "ffn/gate" and not shape.gated)
    ]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(names, size) for size in range(1, len(names) + 1)
    )
    return ["none", "full", *(f"save:{','.join(subset)}" for subset in subsets)]


def _under(run: Points, text: str) -> Points:
    kept = activations.kept_bytes(run, text) / activations.whole_bytes(run)
    again = activations.recomputed_share(run, text)
    code = REMATS.index(text if text in REMATS else "selective")
    return run.replace(kept=kept, recompute=again, remat=code)
