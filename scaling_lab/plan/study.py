"""Compute-optimal on this machine in this time: a law joined with the search.

A law says what loss a size reaches on so many tokens; `plan` says how many tokens a
machine brings to that size in a day. Sizes differ in what the machine makes of them, so
the best one is not the law's own optimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scaling_lab.plan.answer import Choice, plan
from scaling_lab.plan.laws import Curve
from scaling_lab.plan.question import Question
from scaling_lab.plan.spending import DAY, HOUR, SERVED, Spending

#: Draws of law and throughput together, and quantiles that hold four of five.
DRAWS, TAILS = 400, (0.1, 0.9)
#: Normal deviations between the ends of an interval that holds four of five.
WIDE = 2 * 1.2816
#: Loss is told at most so far outside the fitted sizes and tokens without a warning.
FAR = 5.0


@dataclasses.dataclass(frozen=True)
class Fastest:
    """What a machine makes of some sizes: each that fits with its best layout."""

    found: tuple[tuple[Question, Choice], ...]
    unfit: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Size:
    """One size on the machine.

    Attributes:
      tokens: trained on in the time that serving leaves. loss: that they reach.
      loss_low, loss_high: four of five draws of law and throughput.
      best_share: of the draws in which no other size reaches a lower loss.
    """

    name: str
    params: int
    active_params: int
    choice: Choice
    tokens_per_second: float
    tokens: float
    loss: float
    loss_low: float
    loss_high: float
    best_share: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        data = dataclasses.asdict(self) | {"choice": None}
        data.pop("choice")
        told = ("layout", "microbatches", "remat", "step_seconds", "mfu_causal")
        told = (*told, "trained")
        return data | {name: getattr(self.choice, name) for name in told}


@dataclasses.dataclass(frozen=True)
class Study:
    """An answer: every size that fits, that of the lowest loss first."""

    question: Question
    curve: Curve
    spending: Spending
    sizes: tuple[Size, ...]
    unfit: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def chips(self) -> int:
        """Of the machine."""
        return self.question.target.chips or 1

    def cost(self, size: Size, loss: float) -> dict[str, Any] | None:
        """Of training a size to a loss; ``None`` where no tokens bring it there."""
        tokens = self.curve.tokens_for(size.active_params, loss)
        if tokens is None:
            return None
        seconds = tokens / size.tokens_per_second
        costs = self.spending.costs(seconds * self.chips / HOUR)
        return {"tokens": tokens, "days": seconds / DAY, **costs}

    def iso_loss(self, losses: Sequence[float]) -> list[dict[str, Any]]:
        """What each loss costs at every size, smallest size first: cost curves."""
        return [
            {"loss": loss, "name": size.name, "params": size.params, **found}
            for loss in losses
            for size in sorted(self.sizes, key=lambda each: each.params)
            if (found := self.cost(size, loss)) is not None
        ]

    def to_json(self, losses: Sequence[float]) -> dict[str, Any]:
        """Plain JSON; of each of `losses` what it costs at every size."""
        asked = self.question
        return {
            "target": asked.target.text,
            "chips": self.chips,
            "batch": asked.batch,
            "length": asked.length,
            "precision": asked.precision,
            "optimizer": asked.optimizer,
            **dataclasses.asdict(self.spending),
            "budget": self.spending.costs(self.chips * self.spending.days * DAY / HOUR),
            "law": self.curve.name,
            "law_source": self.curve.source,
            "law_parameters": dict(self.curve.values),
            "law_draws": len(self.curve.draws),
            "interval": "four of five draws of law and throughput",
            "best": self.sizes[0].to_json(),
            "sizes": [size.to_json() for size in self.sizes],
            "iso_loss": self.iso_loss(losses),
            "unfit": list(self.unfit),
            "notes": list(self.notes),
        }


def fastest(
    questions: Sequence[Question], tell: Callable[[str], None] = lambda _: None
) -> Fastest:
    """The best layout of every size on a machine.

    Args:
      questions: one a size, on the same machine.
      tell: what is being looked at.

    Raises:
      ValueError: no size fits on the machine.
    """
    found: list[tuple[Question, Choice]] = []
    unfit = []
    for question in questions:
        tell(question.shape.name)
        try:
            choices = plan(question, top=1).choices
        except ValueError as error:
            unfit.append(f"{question.shape.name}: {error}")
            continue
        if choices:
            found.append((question, choices[0]))
        else:
            unfit.append(f"{question.shape.name}: too large for {question.target.text}")
    if not found:
        raise ValueError(
            f"no size fits on {questions[0].target.text}: {'; '.join(unfit)}"
        )
    return Fastest(tuple(found), tuple(unfit))


def study(planned: Fastest, curve: Curve, spending: Spending) -> Study:
    """Which size, tokens and layout give the lowest loss.

    Raises:
      ValueError: serving leaves no time.
    """
    found, question = planned.found, planned.found[0][0]
    rate, tokens = _tokens(found, spending)
    if not (tokens > 0).any():
        need = _serving(rate, spending).min() / DAY
        raise ValueError(
            f"serving {spending.serve_tokens:.3g} tokens takes {need:.3g} days of this "
            f"machine at least, and there are {spending.days:g}: nothing is left to "
            "train in; give more --days, or fewer --serve-tokens"
        )
    left = np.flatnonzero(tokens > 0)
    late = [
        f"{of.shape.name}: serving leaves no time to train"
        for (of, _), own in zip(found, tokens, strict=True)
        if own <= 0
    ]
    sizes = _sizes([found[i] for i in left], rate[left], curve, spending)
    ordered = tuple(sorted(sizes, key=lambda each: each.loss))
    notes = (*curve.notes, *_doubts(ordered, curve))
    unfit = (*planned.unfit, *late)
    return Study(question, curve, spending, ordered, unfit, notes)


def _tokens(
    found: Sequence[tuple[Question, Choice]], spending: Spending
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens a second of every size, and those of the time that serving leaves."""
    rate = np.array([question.tokens / c.step_seconds for question, c in found])
    left = spending.days * DAY - _serving(rate, spending)
    return rate, np.maximum(left, 0.0) * rate


def _serving(rate: np.ndarray, spending: Spending) -> np.ndarray:
    """Seconds of the machine that serving takes, by size."""
    return spending.serve_tokens * SERVED / (rate * spending.serve_efficiency)


def _sizes(
    found: Sequence[tuple[Question, Choice]],
    rate: np.ndarray,
    curve: Curve,
    spending: Spending,
) -> list[Size]:
    """Every size with its loss and how far that is known."""
    n = np.array([float(question.shape.active_params) for question, _ in found])
    _, tokens = _tokens(found, spending)
    loss = curve.loss(n, tokens)
    drawn = _drawn(found, (n, rate), curve, spending)
    best = np.bincount(np.argmin(drawn, 1), minlength=len(n)) / len(drawn)
    low, high = np.quantile(drawn, TAILS, axis=0)
    return [
        Size(
            name=question.shape.name,
            params=question.shape.params,
            active_params=question.shape.active_params,
            choice=choice,
            tokens_per_second=float(rate[i]),
            tokens=float(tokens[i]),
            loss=float(loss[i]),
            loss_low=float(low[i]),
            loss_high=float(high[i]),
            best_share=float(best[i]),
        )
        for i, (question, choice) in enumerate(found)
    ]


def _drawn(
    found: Sequence[tuple[Question, Choice]],
    sizes: tuple[np.ndarray, np.ndarray],
    curve: Curve,
    spending: Spending,
) -> np.ndarray:
    """Losses of draws of law and throughput: (draw, size).

    How far a prediction is off is half the machine's (all sizes alike) and half each
    layout's own: the interval does not say, and it decides which size wins.
    """
    n, rate = sizes
    random = np.random.default_rng(0)
    spread = np.array(
        [np.log(c.step_seconds_high / c.step_seconds_low) / WIDE for _, c in found]
    )
    shared, own = (
        random.standard_normal((DRAWS, 1)),
        random.standard_normal((DRAWS, len(n))),
    )
    rates = rate * np.exp(spread * (shared + own) / np.sqrt(2))
    left = spending.days * DAY - _serving(rates, spending)
    tokens = np.maximum(left, 1.0) * rates
    if not curve.draws:
        return curve.loss(n, tokens)
    picked = random.integers(len(curve.draws), size=DRAWS)
    return np.stack(
        [
            curve.loss(n, tokens[row], curve.draws[which])
            for row, which in enumerate(picked)
        ]
    )


def _doubts(sizes: Sequence[Size], curve: Curve) -> list[str]:
    """What the answer stands on that was not fitted."""
    found, best = [], sizes[0]
    if best.active_params != best.params:
        found.append(
            "N is what a token meets; a law of dense models says nothing of what idle "
            "experts gain"
        )
    params = [each.params for each in sizes]
    if len(sizes) > 1 and best.params in (min(params), max(params)):
        side = "smallest" if best.params == min(params) else "largest"
        found.append(f"the best is the {side} size that was tried: try more")
    for role, value, what in (
        ("n", best.active_params, "params"),
        ("d", best.tokens, "tokens"),
    ):
        low, high = curve.fitted.get(role, (value, value))
        if value > high * FAR or value < low / FAR:
            times = value / high if value > high else low / value
            found.append(
                f"{what} of the best are {times:.0f} times outside what the law was "
                f"fitted on ({low:.3g} to {high:.3g})"
            )
    return found
