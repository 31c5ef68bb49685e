"""Refusals read as a person would: the nearest that works, taken at its word."""

import re


def _axis(layout, axis, size):
    """The text of a layout with another size of one axis."""
    return re.sub(rf"\b{axis}=\d+", f"{axis}={size}", layout, count=1)


def _product(layout, axes, size):
    """The text of a layout whose axes together have a size: all of it in the first."""
    for axis in axes:
        layout = _axis(layout, axis, size if axis == axes[0] else 1)
    return layout


def _less(layout, word):
    return re.sub(rf"\+{re.escape(word)}(=\d+)?", "", layout)


#: What a refusal says -> what it changes, of layout, batch, length, accumulate,
#: axis_type and mask.
ADVICE = [
    (r"nearest length: (\d+)", lambda run, n: {"length": int(n)}),
    (
        r"nearest batch per microbatch: (\d+)",
        lambda run, n: {"batch": int(n) * run["accumulate"]},
    ),
    (
        r"nearest --accumulate for batch=\d+: (\d+)",
        lambda run, n: {"accumulate": int(n)},
    ),
    (r"nearest accumulate: (\d+)", lambda run, n: {"accumulate": int(n)}),
    (
        r"use a batch that (\d+) divides, with --accumulate",
        lambda run, n: {"batch": int(n) * run["batch"], "accumulate": int(n)},
    ),
    (
        r"nearest interleaved: (\d+)",
        lambda run, n: {
            "layout": re.sub(r"interleaved=\d+", f"interleaved={n}", run["layout"])
        },
    ),
    (r"leave \+(\w+) out", lambda run, word: {"layout": _less(run["layout"], word)}),
    (
        r"\+(\w+) and \+?[\w=]+ both say",
        lambda run, word: {"layout": _less(run["layout"], word)},
    ),
    (r"or say --mask (\S+)", lambda run, text: {"mask": text}),
    (r"use --length (\d+)", lambda run, n: {"length": int(n)}),
    (r"use --axis-type (\w+)", lambda run, kind: {"axis_type": kind}),
    (r"; write (\S+=\S+)", lambda run, text: {"layout": text}),
    (
        r"nearest ([\w ×]+) that divide it: (\d+)",
        lambda run, axes, n: {"layout": _product(run["layout"], axes.split(" × "), n)},
    ),
    (
        r"nearest (\w+): (\d+)",
        lambda run, axis, n: {"layout": _axis(run["layout"], axis, n)},
    ),
]


def followed(run, said):
    """The run with the first advice of a refusal taken; raises where there is none."""
    for pattern, change in ADVICE:
        found = re.search(pattern, said)
        if found:
            return run | change(run, *found.groups())
    raise AssertionError(f"no nearest that works: {said}")
