"""Rows that hold every pair of mechanisms that can be, to be trained on eight devices.

A bug of one mechanism is found where it is tested, and most others need two to meet
(Kuhn, Wallace, Gallo 2004, "Software fault interactions"). So every two values of
different factors meet in some row, and every three axes, unless validation refuses
them: then they stand in the other list, with what it says. The values come from the
grammar: a word added there is in the rows when they are made again.
"""

import itertools
from typing import NamedTuple

import numpy as np

from contracts.training import run_of
from scaling_lab import models
from scaling_lab.dims import AXES
from scaling_lab.layouts import Layout, grammar
from scaling_lab.parallel.masks import Blocks
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Routing

DEVICES, BATCH = 8, 32


def words(verb, axis):
    """What a layout may say of a verb that is divided over an axis."""
    for word, (_, bound, _) in grammar.MECHANISMS.items():
        if bound == verb:
            yield f"{axis}+{word}=2" if word in grammar.COUNTED else f"{axis}+{word}"


#: Factor -> its values; the first one says nothing. Of a layout they are an axis, a
#: word after a plus sign, or both.
LAYOUT = {
    "data": ("", "data"),
    "fsdp": ("", "fsdp"),
    "tensor": ("", "tensor", "tensor+sequence"),
    "context": ("", "context", *words("attend", "context")),
    "experts": ("", *words("experts", "expert")),
    "stage": ("", "stage", *words("stack", "stage")),
    "tables": ("", "+zero1", "+zero2", "+gather_once", "+gather_once=2"),
}
RUN = {
    "model": ("llama", "gpt2", "gemma3", "mixtral"),
    "remat": (
        "none",
        "full",
        "save:attention/attend",
        "offload:attention/query",
    ),
    "stack": ("auto", "scan:2"),
    "accumulate": (4, 1),
    "axis_type": ("auto", "explicit"),
    "mask": (
        "causal",
        "window=12",
        "window=12,global=2",
        "chunk=8",
        "prefix=5",
        "blocks",
        "top=1,block=8",
    ),
}
FACTORS = LAYOUT | RUN
ROUTED = "mixtral"
#: Of blocks of 4 their own, the one before, the first and the third; a row has 8.
MAP = Blocks.of(4, [[j in (i, i - 1, 0, 2) for j in range(8)] for i in range(8)])
#: Need an axis of data.
OVER_DATA = ("+zero1", "+zero2")
TRIES = 64
#: Capacity of 1.25 drops some tokens, the same wherever they are.
ROUTING = Routing(top_k=2, balance=0.02, z=0.01, capacity=1.25)


def layout_of(row):
    """The text of a row's layout: three axes of 2, or fewer and larger ones."""
    chosen = [row.get(factor, "") for factor in LAYOUT]
    axes = axes_of(row)
    if axes <= {"stage"}:
        axes |= {"fsdp"}
    axes = sorted(axes, key=AXES.index)
    sizes = dict.fromkeys(axes, 2)
    grows = next(axis for axis in axes if axis != "stage")
    sizes[grows] = DEVICES // 2 ** (len(axes) - 1)
    said = [value.partition("+")[2] for value in chosen]
    named = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    return "+".join([named, *filter(None, said)])


def axes_of(row):
    return {row.get(factor, "").partition("+")[0] for factor in LAYOUT} - {""}


def model_of(name, mask, tiny):
    """Four layers of one kind; Gemma 3's are local, and their windows cut a row."""
    changes = {"routing": ROUTING} if name == ROUTED else {}
    if name == "gemma3":
        changes = {"window": 12, "period": 8}
    model = tiny(name, L=4, **changes)
    if mask == "causal":
        return model
    known = Sight(blocks=MAP) if mask == "blocks" else Sight.parse(mask)
    return models.seeing(model, known)


class Case(NamedTuple):
    """A row as it is trained."""

    model: str
    layout: str
    remat: str = "none"
    stack: str = "auto"
    accumulate: int = 4
    axis_type: str = "auto"
    mask: str = "causal"
    precision: str = "float32"

    @classmethod
    def of(cls, row):
        said = [row.get(factor, values[0]) for factor, values in RUN.items()]
        return cls(said[0], layout_of(row), *said[1:])

    @classmethod
    def read(cls, names, line):
        said = dict(zip(names.split(), line.split(), strict=True))
        return cls(**said | {"accumulate": int(said["accumulate"])})

    def config(self, tiny):
        """The case as a run; raises where it cannot be."""
        fields = self._asdict() | {"batch": BATCH}
        model = model_of(fields.pop("model"), fields.pop("mask"), tiny)
        return run_of(model, fields.pop("layout"), **fields)

    def measure(self):
        """What one device must know: experts have losses of a microbatch."""
        parts = self.accumulate if self.model == ROUTED else 1
        drops = "+capacity" in self.layout
        return self.model, self.mask, drops, parts, self.precision

    def alone(self, tiny):
        """The same on one device, told to drop what the case drops."""
        name, mask, drops, parts, precision = self.measure()
        layout = Layout({}, bind={"experts": "capacity"} if drops else None)
        fields = {"batch": BATCH, "precision": precision, "accumulate": parts}
        return run_of(model_of(name, mask, tiny), layout, stack="scan", **fields)


def held_by(row):
    """The pairs that a row holds, and its three axes.

    A model without experts meets no mechanism of theirs.
    """
    said = [(factor, row[factor]) for factor in FACTORS if row.get(factor, "") != ""]
    held = set(itertools.combinations(said, 2))
    if row.get("model") != ROUTED:
        held = {pair for pair in held if "experts" not in dict(pair)}
    axes = tuple(sorted(axes_of(row), key=AXES.index))
    return held | {axes} if len(axes) == 3 else held


def seed(meeting):
    """The least row with a pair or three axes, and what these need.

    ZeRO divides over data, and experts are of a model that has some.
    """
    row = dict(meeting) if len(meeting) == 2 else dict(map(_first, meeting))
    if row.get("experts"):
        row.setdefault("model", ROUTED)
    if row.get("tables") in OVER_DATA:
        row.setdefault("data", "data")
    return row


def _first(axis):
    """The factor of an axis, with its first word."""
    return next(
        (factor, value)
        for factor, values in LAYOUT.items()
        for value in values
        if value.partition("+")[0] == axis
    )


def every_three():
    """Every three axes."""
    return list(itertools.combinations(AXES, 3))


def every_pair():
    """Every two values that some row can hold, in order; none that is empty."""
    single = [(f, v) for f, values in FACTORS.items() for v in values if v != ""]
    pairs = itertools.combinations(single, 2)
    return [p for p in pairs if len(dict(p)) == 2 and p in held_by(seed(p))]


def refused_pairs(tiny):
    """Pair -> what validation says of it, of those that cannot be."""
    found = {}
    for pair in every_pair():
        try:
            Case.of(seed(pair)).config(tiny)
        except ValueError as error:
            found[pair] = str(error)
    return found


def covering(refused):
    """Rows that hold every pair but those refused, each begun with one left over.

    The rest of a row is what gains most, of a few dozen orders to choose in.
    """
    random = np.random.default_rng(0)
    meetings = [*(pair for pair in every_pair() if pair not in refused), *every_three()]
    left, rows = set(meetings), []
    for meeting in meetings:
        if meeting in left:
            orders = [random.permutation(list(FACTORS)) for _ in range(TRIES)]
            tried = [_filled(meeting, order, left, refused) for order in orders]
            row = max(tried, key=lambda row: len(held_by(row) & left))
            left -= held_by(row)
            rows.append({factor: row[factor] for factor in FACTORS})
    return rows


def _filled(meeting, order, left, refused):
    row = seed(meeting)
    for factor in ("model", *order):
        if factor not in row:
            options = [row | {factor: value} for value in FACTORS[factor]]
            options = [
                option
                for option in options
                if _goes(option, refused) and meeting in held_by(option)
            ]
            row = max(options, key=lambda option: len(held_by(option) & left))
    return row


def _goes(row, refused):
    """Three axes at most, no experts where there are none, and nothing refused."""
    axes, zero = axes_of(row), row.get("tables") in OVER_DATA
    said = [(factor, row[factor]) for factor in FACTORS if factor in row]
    return (
        len(axes | {"data"} if zero else axes) <= 3
        and not (zero and row.get("data") == "")
        and not (row.get("experts") and row.get("model", ROUTED) != ROUTED)
        and not any(pair in refused for pair in itertools.combinations(said, 2))
    )


def written(rows, refused):
    """Both lists as text: a row a line, and a pair that is refused a line."""
    lines = ["model layout " + " ".join(list(RUN)[1:])]
    # Side by side those that one device is the measure of.
    cases = sorted(map(Case.of, rows), key=Case.measure)
    lines += [" ".join(map(str, case[: len(RUN) + 1])) for case in cases]
    lines += ["", "refused"]
    for pair, said in refused.items():
        lines.append(f"{' × '.join(str(value) for _, value in pair)}: {said}")
    return "\n".join(lines) + "\n"


def read(text):
    """The cases of the first list."""
    names, *lines = text.partition("\n\n")[0].splitlines()
    return [Case.read(names, line) for line in lines]
