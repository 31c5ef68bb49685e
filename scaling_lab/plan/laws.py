"""A scaling law as a plan asks it: the loss of a size and its tokens, with doubt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scaling_lab.names import one_of
from scaling_lab.studies import laws
from scaling_lab.studies.law import Law

Numbers = np.ndarray | float
#: Columns that a size and its tokens say.
KNOWN = {"n", "d", "c", "ratio"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A law with its constants.

    Attributes:
      name: of the law. values: its constants. draws: those of the bootstrap's refits,
        none of a published reference.
      source: in words. fitted: lowest and highest n and d of the points, if known.
      notes: what one must know to believe it.
    """

    name: str
    law: Law
    values: Mapping[str, float]
    draws: tuple[Mapping[str, float], ...]
    source: str
    fitted: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...] = ()

    def loss(
        self, n: Numbers, d: Numbers, values: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """Loss of every size and its tokens."""
        n, d = np.broadcast_arrays(np.float64(n), np.float64(d))
        columns = {"n": n, "d": d, "c": 6 * n * d, "ratio": d / n}
        needed = {role: columns[role].ravel() for role in self.law.needs}
        found = self.law.predict(self.values if values is None else values, needed)
        return found.reshape(n.shape)

    def tokens_for(self, n: float, loss: float) -> float | None:
        """Tokens that bring a size to a loss; ``None`` where none do."""
        low, high = 0.0, 45.0  # logarithms
        if self.loss(n, np.exp(high)) > loss:
            return None
        while high - low > 1e-6:
            middle = (low + high) / 2
            reached = self.loss(n, np.exp(middle)) <= loss
            low, high = (low, middle) if reached else (middle, high)
        return float(np.exp(high))


def read(text: str | Path) -> Curve:
    """A law from a fit's JSON, or by the name of a published reference.

    Args:
      text: a file of ``scaling-lab fit --json``, or ``chinchilla:besiroglu_2024``.

    Raises:
      ValueError: no such law or reference, with those there are; a law that says where
        compute is best spent and not what loss that gives.
      OSError: no such file.
    """
    path = Path(text)
    if path.suffix == ".json" or path.exists():
        return _fitted(path)
    name, _, reference = str(text).partition(":")
    if whose := [each for each in usable() if name in laws.law(each).references]:
        raise ValueError(
            f"law {name}: constants of a law; say {' or '.join(whose)}:{name}"
        )
    law = _usable(name)
    if not reference:
        raise ValueError(
            f"law {name}: whose constants? say {_references(name, law)}, or a file of "
            f"`scaling-lab fit … --law {name} --json FILE`"
        )
    one_of(f"reference of {name}", reference, law.references)
    found = law.references[reference]
    lacking = set(law.names) - set(found.values)
    if lacking:
        raise ValueError(
            f"{text}: its source gives no {', '.join(sorted(lacking))}; fit it"
        )
    said = [found.note] if found.note else []
    if found.checked == "secondary":
        said.append("constants taken from somebody's notes on the paper")
    said.append("published constants have no draws: intervals are the throughput's")
    return Curve(name, law, found.values, (), found.source, {}, tuple(said))


def usable() -> list[str]:
    """Laws of which a plan can ask a loss."""
    return [name for name in laws.names() if _lacks(laws.law(name)) is None]


def _lacks(law: Law) -> str | None:
    if law.procedure is not None or law.response != "loss":
        return "says where compute is best spent and not which loss that gives"
    more = [role for role in law.needs if role not in KNOWN]
    if more:
        return f"needs {', '.join(more)}, which a size and its tokens do not say"
    if law.prepare is not None or not law.needs:
        return "is of a table, not of one run"
    return None


def _usable(name: str) -> Law:
    law = laws.law(name)
    why = _lacks(law)
    if why is not None:
        raise ValueError(f"law {name} {why}; use one of {', '.join(usable())}")
    return law


def _references(name: str, law: Law) -> str:
    whole = [
        f"{name}:{key}"
        for key, each in law.references.items()
        if set(law.names) <= set(each.values)
    ]
    return " or ".join(whole) or "none that is published whole"


def _fitted(path: Path) -> Curve:
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not {"law", "parameters"} <= set(data):
        raise ValueError(f"{path} is no fit: write one with `scaling-lab fit --json`")
    law = _usable(data["law"])
    lacking = [name for name in law.names if not (data["parameters"] or {}).get(name)]
    if lacking:
        raise ValueError(f"{path}: no value of {', '.join(lacking)}; fit it again")
    notes = [f"fit's warning: {each}" for each in data.get("warnings") or ()]
    draws = _draws(data.get("draws"), data["parameters"])
    if not draws:
        notes.append(
            "the fit has no draws (--bootstrap 0, or an older file): intervals are the "
            "throughput's"
        )
    ranges = data.get("ranges") or {}
    return Curve(
        data["law"],
        law,
        data["parameters"],
        draws,
        f"{path}: {data.get('n_points')} points",
        {role: tuple(ranges[role]) for role in ("n", "d") if ranges.get(role)},
        tuple(notes),
    )


def _draws(
    columns: Mapping[str, Sequence[float]] | None, values: Mapping[str, float]
) -> tuple[Mapping[str, float], ...]:
    if not columns:
        return ()
    rows = zip(*columns.values(), strict=True)
    drawn = [{**values, **dict(zip(columns, row, strict=True))} for row in rows]
    return tuple(row for row in drawn if None not in row.values())
