"""RunConfig: what identifies a run, what is refused and how it is said."""

import dataclasses
import json
import re

import pytest

from scaling_lab import layouts, models
from scaling_lab.config import RunConfig, check_remat, configure, validate
from scaling_lab.data import DataConfig
from scaling_lab.hardware import chip
from scaling_lab.layouts import IllegalLayout, Layout
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.parallel import policies

TOY = models.size("llama", "toy")


def run_of(layout="fsdp=8", model=TOY, **fields):
    return RunConfig(model, layouts.parse(layout, 8), **fields)


def refused(config, said, devices=None, kind=ValueError):
    with pytest.raises(kind) as caught:
        validate(config, devices)
    assert said in str(caught.value)


# --- Identity


def test_a_layout_of_ones_own_is_taken_as_it_is():
    own = Layout({"fsdp": 8}, params={"D": "fsdp"}, acts={"B": "fsdp"}, name="mine")
    config = configure("llama", "toy", own, "cpu:8")
    validate(config)
    assert config.layout is own


def test_id_is_of_what_changes_a_run():
    config = run_of()
    assert re.fullmatch("[0-9a-f]{16}", config.id)
    assert config.id == run_of(size="toy").id  # labels are not
    renamed = dataclasses.replace(config.layout, name="mine")
    assert dataclasses.replace(config, layout=renamed).id == config.id
    assert run_of("fsdp").id == run_of("fsdp=8").id
    assert run_of("data=2,fsdp=4").id == run_of("fsdp=4,data=2").id
    assert config.id == run_of(batch=8, optimizer=OptimizerConfig(b2=0.95)).id


CHANGES = {
    "target": "cpu:8",
    "batch": 16,
    "length": 128,
    "steps": 21,
    "seed": 1,
    "remat": "full",
    "precision": "bfloat16",
    "parameters": "bfloat16",
    "reduce": "float32",
    "accumulate": 2,
    "stack": "scan",
    "axis_type": "explicit",
    "optimizer": OptimizerConfig(b2=0.99),
    "data": DataConfig(tokenizer="bpe:512"),
    "z_loss": 1e-4,
    "loss_chunks": 2,
    "evaluate_batches": 5,
    "xla_flags": "--xla_x",
    "mup": dataclasses.replace(TOY, D=64),
    "model": dataclasses.replace(TOY, D=64),
    "layout": layouts.parse("data=8"),
}


def test_every_field_is_changed_below():
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    assert fields - {"size"} <= set(CHANGES)


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_id_and_comes_back(field):
    config = dataclasses.replace(run_of(), **{field: CHANGES[field]})
    assert config.id != run_of().id
    again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert again.id == config.id


def test_a_new_default_orphans_no_run():
    """Only what differs from a default is written, so a field more changes no id."""

    @dataclasses.dataclass(frozen=True)
    class Later(RunConfig):
        invented: float = 0.5

    config = run_of(steps=7)
    later = Later(config.model, config.layout, steps=7)
    assert later.id == config.id
    assert dataclasses.replace(later, invented=0.6).id != config.id
    assert set(config.to_json()) == {"model", "layout", "steps"}


@pytest.mark.parametrize("family", models.families())
def test_every_size_comes_back(family):
    for size, model in models.family(family).SIZES.items():
        config = run_of(model=model, size=size)
        assert config.family == family
        again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
        assert (again, again.size) == (config, size)


def test_defaults_pin_the_hash():
    """If this fails, finished runs would be run again: raise SCHEMA or mend it."""
    model = dataclasses.replace(TOY, L=2)
    config = RunConfig(model, Layout({"data": 8}, acts={"B": "data"}), steps=3)
    assert config.to_json(identity=True) == {
        "model": {
            "family": "llama",
            "L": 2,
            "D": 128,
            "N": 8,
            "K": 4,
            "H": 16,
            "F": 384,
            "V": 256,
            "length": 1024,
        },
        "layout": {
            "mesh": {"data": 8},
            "params": {},
            "acts": {"B": "data"},
            "gather": "layer",
        },
        "steps": 3,
    }


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((), "unknown field of RunConfig 'stpes'; did you mean steps"),
        (("model",), "unknown field of Config 'stpes'"),
        (("optimizer",), "unknown field of OptimizerConfig 'stpes'"),
        (("data",), "unknown field of DataConfig 'stpes'"),
    ],
)
def test_unknown_fields(place, said):
    fields = {"optimizer": OptimizerConfig(b2=0.9), "data": DataConfig(("a",))}
    data = run_of(**fields).to_json()
    inner = data
    for key in place:
        inner = inner[key]
    inner["stpes"] = 1
    with pytest.raises(ValueError, match=re.escape(said)):
        RunConfig.from_json(data)


def test_an_unknown_family():
    data = run_of().to_json()
    data["model"]["family"] = "lama"
    with pytest.raises(ValueError, match="unknown family 'lama'; did you mean llama"):
        RunConfig.from_json(data)


def test_derived_numbers():
    config = run_of(batch=16, length=128, accumulate=2)
    assert config.tokens_per_step == 2048
    assert config.dim_sizes["B"] == 8 and config.dim_sizes["T"] == 128
    assert config.dim_sizes["D"] == TOY.D


# --- Refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": 0}, "batch=0: must be at least 1"),
        ({"length": -1}, "length=-1: must be at least 1"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"accumulate": 0}, "accumulate=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be a number of at least 0"),
        ({"z_loss": float("nan")}, "z_loss=nan: must be a number of at least 0"),
        (
            {"optimizer": OptimizerConfig(learning_rate=float("inf"))},
            "learning_rate=inf: must be a number above 0",
        ),
        ({"precision": "bf16"}, "unknown precision 'bf16'; did you mean bfloat16"),
        ({"stack": "scann"}, "unknown stack 'scann'; did you mean scan"),
        ({"axis_type": "Auto"}, "unknown axis_type 'Auto'; did you mean auto"),
        (
            {"batch": 48, "accumulate": 5},
            "batch=48 does not divide into accumulate=5 equal parts; nearest",
        ),
        ({"length": 2048}, "length=2048 is more than the 1024 positions of llama toy"),
        ({"optimizer": OptimizerConfig("adam")}, "unknown optimizer 'adam'; did you"),
        (
            {"optimizer": OptimizerConfig(schedule="cos")},
            "unknown schedule 'cos'; did you mean cosine",
        ),
        ({"target": "h1000:8"}, "h1000"),
        (
            {"model": dataclasses.replace(TOY, K=3)},
            "N=8 query heads cannot share K=3 key-value heads; N must be a multiple",
        ),
        (
            {"model": dataclasses.replace(TOY, H=15)},
            "H=15: a head's width must be even to be rotated",
        ),
    ],
)
def test_refused(fields, said):
    refused(run_of(size="toy", **fields), said)


def test_chunks_that_cannot_be_are_refused():
    # Fails while nothing looks at loss_chunks before tracing.
    refused(run_of(length=32, loss_chunks=257), "loss_chunks=257")
    refused(run_of(length=32, loss_chunks=0), "loss_chunks=0")


@pytest.mark.parametrize(
    ("layout", "fields", "said"),
    [
        ("tensor=8", {"N": 12, "K": 4}, "dim N=12 (query heads) does not divide over"),
        ("tensor=8", {"N": 12, "K": 4}, "nearest tensor that divide it: 4, 6, 12"),
        ("tensor=8", {"N": 24, "K": 12}, "dim K=12 (key-value heads) does not"),
        ("tensor=8", {"N": 24, "K": 3}, "nearest tensor that divide it: 1, 3"),
        ("fsdp=8", {"D": 100}, "dim D=100 (model width) does not divide over fsdp=8"),
        ("fsdp=8", {"D": 100}, "nearest fsdp that divide it: 4, 5, 10"),
        ("tensor=8", {"F": 100}, "dim F=100 (feed-forward width) does not"),
    ],
)
def test_illegal_sizes(layout, fields, said):
    config = run_of(layout, dataclasses.replace(TOY, **fields))
    refused(config, said, kind=IllegalLayout)


@pytest.mark.parametrize(
    ("layout", "fields", "said"),
    [
        ("fsdp=8", {"batch": 12}, "dim B=12 (batch)"),
        ("fsdp=8", {"batch": 12}, "nearest batch per microbatch: 8, 16"),
        ("fsdp=8", {"batch": 8, "accumulate": 2}, "dim B=4 (batch)"),
        ("tensor=8+sequence", {"length": 100}, "nearest length: 96, 104"),
    ],
)
def test_illegal_batches(layout, fields, said):
    # Eight key-value heads, so that nothing else stands in the way.
    model = dataclasses.replace(TOY, K=8)
    refused(run_of(layout, model, **fields), said, kind=IllegalLayout)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_few_key_value_heads_are_legal(heads):
    config = run_of("tensor=8", dataclasses.replace(TOY, K=heads))
    validate(config)
    divided = config.placed_layout.spec("params", "LDKH", "key_LDKH")[2]
    assert divided == (("tensor",) if heads == 8 else ())


def test_device_counts():
    refused(run_of(target="cpu:4"), "mesh of 8 devices and the target has 4")
    refused(run_of(), "the target has 2", devices=2)
    validate(run_of(target="cpu:8"))
    validate(run_of())  # of this machine nothing is known yet


def test_nothing_is_traced_for_an_illegal_layout(monkeypatch):
    def never(*_, **__):
        raise AssertionError("the forward pass was traced")

    monkeypatch.setattr(models.family("llama"), "hidden", never)
    refused(run_of(batch=12), "dim B=12", kind=IllegalLayout)


def test_layers_in_a_turn_of_the_loop():
    validate(run_of(stack=f"scan:{TOY.L}"))
    refused(run_of(stack="scan:0"), "stack 'scan:0'; did you mean")
    refused(run_of(stack=f"scan:{TOY.L + 1}"), f"there are L={TOY.L} layers")
    piped = run_of("stage=2,data=4", stack="scan:2", accumulate=2, batch=8)
    refused(piped, "a stage scans its own layers", kind=IllegalLayout)
    for stack in ("scan", "scan:1", "scan:4", "unroll"):
        validate(run_of("fsdp=8+gather_once=2", stack=stack))
    odd = run_of("fsdp=8+gather_once=2", stack="scan:3")
    refused(odd, "whole groups of +gather_once=2", kind=IllegalLayout)
    # More layers in a turn than there are: what is advised must exist.
    refused(run_of("fsdp=8+gather_once=2", stack="scan:99"), "layers; say scan:")
    refused(odd, "say scan, which has 2 layers in a turn, or scan:4")


def test_remat_policies():
    verbs = ["ffn/gate", "ffn/up"]
    for policy in (
        *("none", "full", "save:ffn/gate", "recompute:ffn/up,ffn/gate"),
        *("offload:ffn/up", "save:ffn/gate;offload:ffn/up"),
    ):
        check_remat(policy, verbs)
    for policy, said in (
        ("ful", "unknown remat 'ful'; did you mean full"),
        ("save:ffn/gat", "'save:ffn/gat' 'ffn/gat'; did you mean ffn/gate"),
        ("recompute:", "unknown verb in remat 'recompute:' ''"),
        ("save:ffn/gate;offlod:ffn/up", "'offlod'; did you mean offload"),
        ("offload:ffn/gat", "'offload:ffn/gat' 'ffn/gat'; did you mean ffn/gate"),
        ("save:ffn/up;offload:ffn/up", "saves ffn/up and offloads it too"),
        ("recompute:ffn/up;offload:ffn/gate", "is not a policy; say none, full"),
        ("none;offload:ffn/gate", "is not a policy; say none, full"),
        ("offload:attention/attend", "not offloaded yet; say save:attention/attend"),
    ):
        with pytest.raises(ValueError, match=said):
            check_remat(policy, [*verbs, "attention/attend"])


def test_a_policy_is_written_as_it_is_read():
    kinds = ("none", "full", "save:a,b", "recompute:a", "offload:a,b")
    for text in (*kinds, "save:a;offload:b"):
        assert policies.parse(text).text == text
    assert policies.parse("save:a;offload:b,c").kept == ("a", "b", "c")
    assert policies.parse("recompute:a").kept == ()


def test_a_named_set_of_flags_is_the_chips():
    overlap = configure("llama", "8b", "fsdp=64", "h100:8x8", xla_flags="overlap")
    assert overlap.xla_flags == chip("h100").flags["overlap"]
    with pytest.raises(ValueError, match="did you mean overlap"):
        configure("llama", "8b", "fsdp=64", "h100:8x8", xla_flags="olap")
    with pytest.raises(ValueError, match="cpu:8 has no named sets"):
        configure("llama", "toy", "fsdp=8", "cpu:8", xla_flags="overlap")
