"""Every family under every layout does what it does on one device."""

import pytest

from contracts.training import EXPERTS, LAYOUTS, Trained, moments, resting, run_of, same
from scaling_lab import dims, models
from scaling_lab.layouts import Layout

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def reference(batches):
    """Three steps on one device, made once for each family."""
    made = {}

    def of(model):
        if model not in made:
            made[model] = Trained(run_of(model, Layout({})), batches)
        return made[model]

    return of


def divided(leaf, spec, layout):
    return leaf.addressable_shards[0].data.size * layout.over(spec) == leaf.size


def check_tables(trained):
    """Parameters and moments rest where their own tables say, before and after."""
    layout = trained.config.placed_layout
    for (was, ndim), (now, _) in zip(
        trained.rested, resting(trained.state), strict=True
    ):
        assert now.is_equivalent_to(was, ndim)
    for kind, leaves in (
        ("params", dims.leaves(trained.state.params)),
        ("optimizer", moments(trained.state)),
    ):
        for path, leaf in leaves.items():
            name = path.rpartition("/")[2]
            spec = layout.spec(kind, dims.letters(name), name)
            assert divided(leaf, spec, layout), (kind, path, leaf.sharding)


#: One family meets every layout. The others are made of the same verbs and meet what
#: is theirs: biases, learned positions and a tied head; experts; windows; latent
#: attention.
SOME = ["zero2", "hsdp", "fsdp=4,tensor=2+sequence"]
MEETS = {
    "llama": LAYOUTS,
    "gpt2": ["zero1", "fsdp", "fsdp=4,tensor=2+sequence", "data=2,context=4"],
    "mixtral": [*EXPERTS, "fsdp=4,tensor=2+sequence", "data=2,context=4"],
}
#: Explicit axes where they bind a verb otherwise: whole weights, gathered ones with
#: divided heads and positions, experts. The rest is slow.
EXPLICIT = {
    "llama": LAYOUTS,
    "gpt2": ["zero1", "fsdp=4,tensor=2+sequence"],
    "mixtral": ["expert=2,fsdp=2,tensor=2"],
}
QUICK_EXPLICIT = {("llama", "zero1"), ("llama", "fsdp=4,tensor=2+sequence")}


def layouts_of(family):
    if family in MEETS:
        return MEETS[family]
    routed = hasattr(models.size(family, "toy"), "routing")
    return [*SOME, "expert=2,fsdp=2,tensor=2"] if routed else SOME


def cases():
    for family in models.families():
        pairs = [(layout, "auto") for layout in layouts_of(family)]
        pairs += [(layout, "explicit") for layout in EXPLICIT.get(family, ())]
        for layout, axis_type in pairs:
            quick = axis_type == "auto" or (family, layout) in QUICK_EXPLICIT
            yield pytest.param(
                family,
                layout,
                axis_type,
                marks=() if quick else pytest.mark.slow,
                id=f"{family}-{layout}-{axis_type}",
            )


@pytest.mark.parametrize(("family", "layout", "axis_type"), list(cases()))
def test_a_layout_trains_as_one_device(
    family, layout, axis_type, tiny, batches, reference
):
    config = run_of(tiny(family), layout, axis_type=axis_type)
    # Of one family without experts and one with them every layout draws by itself.
    trained = Trained(config, batches, draws=family in ("llama", "mixtral"))
    same(trained, reference(tiny(family)))
    check_tables(trained)
    assert trained.program.step._cache_size() == 1


@pytest.mark.parametrize(
    ("heads", "axis_type"),
    [
        (2, "auto"),
        pytest.param(1, "auto", marks=pytest.mark.slow),
        pytest.param(1, "explicit", marks=pytest.mark.slow),
        pytest.param(4, "explicit", marks=pytest.mark.slow),
    ],
)
def test_fewer_key_value_heads_than_the_axis(
    heads, axis_type, tiny, batches, reference
):
    model = tiny("llama", K=heads)
    trained = Trained(run_of(model, "tensor=8", axis_type=axis_type), batches)
    same(trained, reference(model))
    check_tables(trained)


@pytest.mark.parametrize("heads", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_fewer_key_value_heads_than_a_context_exchanges(
    heads, tiny, batches, reference
):
    model = tiny("llama", K=heads)
    same(Trained(run_of(model, "context=8+ulysses"), batches), reference(model))


def test_zero_divides_what_it_says(tiny, batches):
    """ZeRO's three stages by the bytes of one weight on one device."""
    held = {}
    for layout in ("zero1", "fsdp"):
        state = Trained(run_of(tiny("llama"), layout), batches[:1]).state
        parts = dims.leaves(state.params), moments(state)
        held[layout] = [
            leaf.size // leaf.addressable_shards[0].data.size
            for leaf in (leaves["layers/gate_LDF"] for leaves in parts)
        ]
    assert held == {"zero1": [1, 8], "fsdp": [8, 8]}
