"""Layouts and shapes that nobody chose: what is legal trains, what is not says why."""

import os

import hypothesis
import jax
import pytest
from hypothesis import strategies as some

from contracts import advice
from contracts.training import Trained, run_of, same
from scaling_lab import models
from scaling_lab.dims import AXES
from scaling_lab.layouts import Layout, grammar
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Routing

#: More of both, to look for what is not known yet.
MORE = int(os.environ.get("SCALING_LAB_EXAMPLES", "1"))
FAMILIES = ("llama", "gpt2", "gemma3", "mixtral")
MASKS = (
    "causal",
    "window=7",
    "window=5,global=2",
    "chunk=6",
    "prefix=3",
    "top=1,block=4",
)


@some.composite
def layout_texts(draw, devices=8, sizes=(1, 2, 3, 4, 8)):
    """Axes of any sizes on so many devices, and any words after them."""
    axes = draw(
        some.lists(some.sampled_from(AXES), min_size=1, max_size=4, unique=True)
    )
    left, parts = devices, []
    for axis in sorted(axes, key=AXES.index):
        size = draw(some.sampled_from([n for n in sizes if n <= left]))
        left //= size
        parts.append(f"{axis}={size}")
    words = draw(
        some.lists(some.sampled_from(list(grammar.MODIFIERS)), max_size=3, unique=True)
    )
    said = [f"{word}=2" if word in grammar.COUNTED else word for word in words]
    return "+".join([",".join(parts), *said])


@some.composite
def runs(draw):
    """Anything that can be asked of a small model, most of which cannot be."""
    heads = draw(some.sampled_from([2, 4, 6, 8]))
    shape = {
        "L": draw(some.integers(1, 6)),
        "D": draw(some.sampled_from([24, 32, 48])),
        "N": heads,
        "K": draw(
            some.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])
        ),
        "F": draw(some.sampled_from([32, 36, 64])),
        "V": draw(some.sampled_from([64, 96, 250])),
        "E": draw(some.sampled_from([2, 4, 6, 8])),
    }
    asked = {
        "layout": draw(layout_texts()),
        "batch": draw(some.integers(1, 24)),
        "length": draw(some.integers(4, 48)),
        "accumulate": draw(some.sampled_from([1, 2, 3, 4])),
        "axis_type": draw(some.sampled_from(["auto", "explicit"])),
    }
    family = draw(some.sampled_from(FAMILIES))
    if family != "gemma3":  # whose layers see what the family's do
        masks = MASKS[:-1] if family == "gpt2" else MASKS
        asked["mask"] = draw(some.sampled_from(masks))
    return family, shape, asked


def run(tiny, family, shape, asked):
    """The run that is asked; raises where it cannot be."""
    model = model_of(tiny, family, shape)
    if asked.get("mask", "causal") != "causal":
        model = models.seeing(model, Sight.parse(asked["mask"]))
    return run_of(model, **{key: asked[key] for key in asked if key != "mask"})


def model_of(tiny, family, shape):
    changes = dict(shape)
    if family == "mixtral":
        changes["routing"] = Routing(2, balance=0.02)
    else:
        changes.pop("E")
    if family == "gpt2":
        changes["K"] = changes["N"]
    return tiny(family, H=8, **changes)


def profile(examples, **more):
    return hypothesis.settings(
        max_examples=examples * MORE,
        derandomize=MORE == 1,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        **more,
    )


@hypothesis.given(runs())
@profile(100)
def test_whoever_follows_a_refusal_ends_in_a_run(tiny, drawn):
    """Refused before anything is traced, with a nearest, and no refusal comes twice."""
    family, shape, asked = drawn
    heard = []
    while True:
        try:
            run(tiny, family, shape, asked)
            return
        except ValueError as refusal:
            said = str(refusal)
        assert said not in heard, said
        assert len(heard) < 12, heard
        heard.append(said)
        asked = advice.followed(asked, said)


@hypothesis.given(runs())
@profile(6, phases=[hypothesis.Phase.generate])
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
def test_what_is_legal_trains_as_one_device(tiny, packed, drawn):
    family, shape, asked = drawn
    for _ in range(12):
        try:
            config = run(tiny, family, shape, asked)
            break
        except ValueError as refusal:
            asked = advice.followed(asked, str(refusal))
    # A refusal may have asked for an axis more.
    hypothesis.assume(1 < config.layout.devices <= jax.device_count())
    hypothesis.note(asked)
    model, sizes = config.model, (asked["batch"], asked["length"])
    batches = [packed(*sizes, model.V, seed) for seed in range(3)]
    alone = {name: asked[name] for name in ("batch", "length")}
    bound = config.layout.mechanism("experts", "")
    bind = {"experts": "capacity"} if bound == "capacity" else None
    if family == "mixtral":  # whose losses are of a microbatch
        alone["accumulate"] = asked["accumulate"]
    alone = run_of(model, Layout({}, bind=bind), **alone)
    same(Trained(config, batches), Trained(alone, batches))
