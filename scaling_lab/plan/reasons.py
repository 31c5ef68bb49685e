"""Why the losers lost: the part of a step, or the memory, that cost them the place."""

from __future__ import annotations

import numpy as np

from scaling_lab.plan import words
from scaling_lab.plan.candidates import POLICY_WORDS
from scaling_lab.plan.rank import Ranked

#: A part of a step that weighs less than this share of it is not worth a word.
WORTH_A_WORD = 0.002


def parts(ranked: Ranked, index: int) -> dict[str, float]:
    """Seconds of a step by where they go; they add up to the step."""
    prediction = ranked.prediction
    found = {
        "products": prediction.compute_seconds,
        "attention": prediction.attention_seconds,
        "memory traffic": prediction.memory_seconds,
        "pipeline bubble": prediction.bubble_seconds,
        "optimizer": prediction.optimizer_seconds,
        "launches and overhead": prediction.overhead_seconds,
    }
    for axis, seconds in prediction.communication_seconds.items():
        found[f"exposed {axis} communication"] = seconds
    return {name: float(seconds[index]) for name, seconds in found.items()}


def of_loser(ranked: Ranked, index: int, first: int, freely: dict[str, int]) -> str:
    """Why a candidate is behind the first.

    Args:
      freely: what would be fastest if memory were no limit, of the ``loser``'s layout
        and of the ``first``'s; where they fit, they are these two themselves.
    """
    best, own = ranked.seconds[first], ranked.seconds[index]
    behind = f"+{100 * (own / best - 1):.1f} %: "
    loser, winner = freely["loser"], freely["first"]
    if not ranked.fits[loser] and ranked.seconds[loser] < ranked.seconds[winner]:
        return behind + _memory(ranked, loser)
    before, after = parts(ranked, first), parts(ranked, index)
    more = {name: after[name] - before[name] for name in after}
    (name, cost), second = sorted(more.items(), key=lambda item: -item[1])[:2]
    if cost < WORTH_A_WORD * best:
        heavier = ranked.memory.hbm_bytes[index] - ranked.memory.hbm_bytes[first]
        more_bytes = f"; {words.size(heavier)} more memory" if heavier > 1e8 else ""
        return behind + "as good as the first" + more_bytes
    said = f"{name} +{_seconds(cost)}"
    if name in ("products", "attention") and _recomputes_more(ranked, index, first):
        said = f"recomputation +{_seconds(cost)}"
    if second[1] > max(cost / 3, WORTH_A_WORD * best):
        said += f", {second[0]} +{_seconds(second[1])}"
    return behind + said


def of_unfit(ranked: Ranked, index: int) -> str:
    """What a candidate needs that the device does not have."""
    memory = ranked.memory
    held = {
        "weights": memory.parameter_bytes[index],
        "gradients": memory.gradient_bytes[index],
        "optimizer state": memory.optimizer_bytes[index],
        "activations": memory.activation_bytes[index],
        "logits": memory.logits_bytes[index],
        "temporaries": memory.temporary_bytes[index],
    }
    name = max(held, key=lambda key: held[key])
    needs, limit = memory.hbm_bytes[index], ranked.question.limit_bytes
    return (
        f"memory: needs {words.size(needs)} of {words.size(limit)}, "
        f"{words.size(held[name])} of it {name}"
    )


def _memory(ranked: Ranked, index: int) -> str:
    table = ranked.candidates.table
    policy = POLICY_WORDS[int(table["policy"][index])]
    if index in ranked.remats:
        policy = words.remat(ranked.remat(index))
    needs = words.size(ranked.memory.hbm_bytes[index])
    return (
        f"memory: remat {policy}, {int(table['sequences'][index])} sequences at a time "
        f"would take {_seconds(ranked.seconds[index])} and {needs}"
    )


def _recomputes_more(ranked: Ranked, index: int, first: int) -> bool:
    again = ranked.points.recompute
    return bool(again[index] > again[first])


def _seconds(value: float | np.floating) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"
