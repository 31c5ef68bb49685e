"""Looks for few rows that hold what `covering` wants held; see there."""

import itertools
from collections import Counter

import numpy as np

from contracts.covering import (
    BIASED,
    EXACT,
    FACTORS,
    MOVING,
    OVER_DATA,
    ROUTED,
    agrees,
    axes_of,
    begun,
    case_of,
    held_by,
    meetings,
)

#: Rows tried for each, and how often so many of them are looked for again.
TRIES, ROUNDS, REPLACED = 12, 2400, 3
ORDER = {factor: number for number, factor in enumerate(FACTORS)}


def covering(refused):
    """Rows that hold every pair but those refused; the same every time.

    Greedy ones first, of which then a few at a time are drawn and filled again, and
    kept where they take no longer.
    """
    random = np.random.default_rng(0)
    search = Search(meetings(refused), refused, random)
    best = search.filled([])
    for _ in range(ROUNDS):
        again = random.choice(len(best), REPLACED, replace=False)
        found = search.filled([row for n, row in enumerate(best) if n not in again])
        best = min(found, best, key=seconds)
    return best


def seconds(rows):
    """About how long rows take, and those on one device that they are held against."""
    cases = [case_of(row) for row in rows]
    return sum(map(_seconds, cases)) + 0.45 * sum(
        map(_seconds, {case.measure() for case in cases})
    )


def _seconds(case):
    return 16 if case.model in BIASED else 14 if case.model in ROUTED else 7


class Search:
    """Looks for rows.

    Args:
      wanted: what they are to hold. refused: pairs that they must not.
    """

    def __init__(self, wanted, refused, random):
        self.wanted, self.refused, self.random = wanted, refused, random

    def filled(self, rows):
        """The rows, and more until all is held; none whose every pair is in another.

        Each is the best of a few dozen for its time.
        """
        rows = list(rows)
        left = set(self.wanted).difference(*map(held_by, rows))
        while left:
            waiting = [meeting for meeting in self.wanted if meeting in left]
            tried = [self.row(waiting, left) for _ in range(TRIES)]
            row = max(
                tried, key=lambda r: len(held_by(r) & left) / _seconds(case_of(r))
            )
            left -= held_by(row)
            rows.append(row)
        return self.needed(rows)

    def needed(self, rows):
        """Without rows whose every pair is in another one."""
        held = [held_by(row).intersection(self.wanted) for row in rows]
        count = Counter(itertools.chain(*held))
        kept = []
        for own, row in zip(held, rows, strict=True):
            if all(count[meeting] > 1 for meeting in own):
                count.subtract(own)
            else:
                kept.append(row)
        return kept

    def row(self, waiting, left):
        """A row around something that waits; each value is what meets most."""
        row = begun(waiting[self.random.integers(len(waiting))])
        if row.keys() <= MOVING:
            row["precision"] = EXACT
        order = map(str, self.random.permutation(list(FACTORS)))
        for factor in ("model", "precision", *order):
            if factor in row:
                continue
            said = [(f, row[f]) for f in FACTORS if f in row]
            options = [v for v in FACTORS[factor] if self.goes(row, said, (factor, v))]
            if factor == "model":
                self.random.shuffle(options)
            close = row.get("precision", EXACT) == EXACT or factor not in MOVING
            counted = [each for each in said if close or each[0] not in MOVING]
            gains = [
                sum(_pair((factor, value), other) in left for other in counted)
                for value in options
            ]
            row[factor] = options[int(np.argmax(gains))]
        return {factor: row[factor] for factor in FACTORS}

    def goes(self, row, said, more):
        """Three axes at most, no experts where there are none, and nothing refused."""
        row = row | dict([more])
        axes, zero = axes_of(row), row.get("tables") in OVER_DATA
        return (
            len(axes | {"data"} if zero else axes) <= 3
            and not (zero and row.get("data") == "")
            and ("model" not in row or agrees(row, row["model"]))
            and not any(_pair(more, other) in self.refused for other in said)
        )


def _pair(one, other):
    return tuple(sorted((one, other), key=lambda each: ORDER[each[0]]))
