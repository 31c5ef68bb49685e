"""Rows that hold every pair of mechanisms that can be, to be trained on eight devices.

A bug of one mechanism is found where it is tested, and most others need two to meet
(Kuhn, Wallace, Gallo 2004, "Software fault interactions"). So every two values of
different factors meet in some row, and every three axes, unless validation refuses
them: then they stand in the other list, with what it says. The values come from the
grammar and its kin: a word or a family added there is missing from the rows until they
are made again.
"""

import itertools

from contracts.cases import Case
from scaling_lab import models
from scaling_lab.config.validate import PRECISIONS, REDUCED
from scaling_lab.dims import AXES
from scaling_lab.layouts import grammar
from scaling_lab.optimizers import moments
from scaling_lab.optimizers.rounding import RESTING

DEVICES = 8


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
    "away": ("", *words("optimizer", "")),
}
RUN = {
    "model": ("llama", *(name for name in models.families() if name != "llama")),
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
        "window=12,global=4",
        "chunk=8",
        "prefix=5",
        "blocks",
        "top=1,block=8",
    ),
    "routing": (
        "none",
        "top=2,gate=softmax",
        "top=3,gate=sigmoid,normalise=no",
        "top=2,gate=sigmoid,groups=4,top_groups=2,bias=yes",
        "top=2,gate=softmax,choice=expert",
    ),
    "precision": PRECISIONS,
    "parameters": RESTING,
    "moments": moments.KINDS,
    "reduce": ("none", *REDUCED),
}
FACTORS = LAYOUT | RUN
#: Families with experts, and those whose routers have a bias.
ROUTED = tuple(models.with_experts())
BIASED = tuple(name for name in ROUTED if hasattr(models.size(name, "toy"), "biased"))
OF_EXPERTS = ("experts", "routing")
#: Factors that say where arrays are and what is made again; the rest, what is computed.
MOVING = {*LAYOUT, "model", "remat", "stack", "accumulate", "axis_type"}
NONE, TOP = RUN["routing"][:2]
EXACT = RUN["precision"][0]
#: Need an axis of data.
OVER_DATA = ("+zero1", "+zero2")


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


def case_of(row):
    said = [row.get(factor, values[0]) for factor, values in RUN.items()]
    return Case(said[0], layout_of(row), *said[1:])


def held_by(row):
    """The pairs that a row holds, and its three axes.

    A model without experts meets no mechanism of theirs. Where precision is low, what
    moves arrays is not compared closely: two such mechanisms do not count as met.
    """
    said = [(factor, row[factor]) for factor in FACTORS if row.get(factor, "") != ""]
    if not agrees(row, row.get("model")):
        said = [(f, v) for f, v in said if f not in OF_EXPERTS]
    held = set(itertools.combinations(said, 2))
    if row.get("precision", EXACT) != EXACT:
        return {pair for pair in held if not dict(pair).keys() <= MOVING}
    axes = tuple(sorted(axes_of(row), key=AXES.index))
    return held | {axes} if len(axes) == 3 else held


def agrees(row, model):
    """Whether a row says of experts what can be said of a model."""
    routing = row.get("routing", TOP if model in ROUTED else NONE)
    if model not in ROUTED:
        return routing == NONE and not row.get("experts")
    return routing != NONE and (model in BIASED or "bias" not in routing)


def seed(meeting):
    """The least row with a pair or three axes, and what these need.

    ZeRO divides over data, and experts are of a model that has some.
    """
    row = begun(meeting)
    if row.get("experts") or row.get("routing", NONE) != NONE:
        biased = "bias" in row.get("routing", "")
        row.setdefault("model", (BIASED if biased else ROUTED)[-1])
    if row.get("model") in ROUTED:
        row.setdefault("routing", TOP)
    if row.get("tables") in OVER_DATA:
        row.setdefault("data", "data")
    return row


def begun(meeting):
    return dict(meeting) if len(meeting) == 2 else dict(map(_first, meeting))


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
            case_of(seed(pair)).config(tiny)
        except ValueError as error:
            found[pair] = str(error)
    return found


def meetings(refused):
    """All that some row must hold."""
    return [*(pair for pair in every_pair() if pair not in refused), *every_three()]


def row_of(case):
    """The row that a case is of; what its layout says, as factors."""
    named, *said = case.layout.split("+")
    axes = {part.partition("=")[0] for part in named.split(",")} | {""}
    row = {}
    for factor, values in LAYOUT.items():
        parts = [(value, *value.partition("+")[::2]) for value in values]
        fits = [v for v, axis, word in parts if axis in axes and word in ("", *said)]
        row[factor] = fits[-1]
    return row | {factor: getattr(case, factor) for factor in RUN}


def written(rows):
    """Rows as text, a line each, side by side where one device is their measure."""
    lines = ["model layout " + " ".join(list(RUN)[1:])]
    cases = sorted(map(case_of, rows), key=Case.measure)
    return "\n".join([*lines, *(" ".join(map(str, case)) for case in cases)])


def told(refused):
    """Refused pairs as text, one a line, with what validation says."""
    lines = ["refused"]
    for pair, said in refused.items():
        lines.append(f"{' × '.join(str(value) for _, value in pair)}: {said}")
    return "\n".join(lines) + "\n"


def read(text):
    """The cases of the first list."""
    names, *lines = text.partition("\n\n")[0].splitlines()
    return [Case.read(names, line) for line in lines]
