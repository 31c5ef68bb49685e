"""Routing: said in words, landing in the model, and told by a run's record."""

import dataclasses
import json

import numpy as np
import pytest

from scaling_lab import models, record, studies, sweep
from scaling_lab.config import RunConfig, configure
from scaling_lab.parallel.verbs import Routing, routing_fields
from scaling_lab.sweep import run_here
from scaling_lab.sweep.branches import run_branches
from scaling_lab.sweep.long_run import LongRun, run_training

pytestmark = pytest.mark.usefixtures("quick_compiles")

TINY = {
    "layers": 1,
    "width": 32,
    "length": 32,
    "batch": 8,
    "steps": 3,
    "evaluate_batches": 1,
    "target": "cpu:8",
}
CAPACITY = "expert=4,fsdp=2+capacity"


@pytest.fixture
def words(text):
    return {**TINY, "data": (str(text),)}


# --- Words


@pytest.mark.parametrize(
    "routing",
    [
        Routing(),
        Routing(1, "sigmoid", "expert", capacity=1.5, balance=0.0, z=1e-3),
        Routing(4, normalise=False, scaling=2.5, groups=4, top_groups=2),
    ],
)
def test_words_say_a_routing_and_a_routing_its_words(routing):
    assert Routing(**routing_fields(routing.text)) == routing


def test_words_change_what_they_say_and_nothing_else():
    own = models.size("mixtral", "toy")
    found = models.routed(own, "top=1, choice=expert,gate=sigmoid,capacity=2,z=1e-3")
    wanted = Routing(1, "sigmoid", "expert", capacity=2.0, balance=0.02, z=1e-3)
    assert found == dataclasses.replace(own, routing=wanted)
    assert models.routing(found) == (
        "top=1,gate=sigmoid,choice=expert,capacity=2.0,balance=0.02,z=0.001"
    )
    assert models.routing(models.size("llama", "toy")) is None


def test_a_routers_bias_is_a_word_of_the_family_that_has_one():
    toy = models.size("deepseek", "toy")
    assert str(models.routing(toy)).endswith(",bias=yes")
    assert models.routed(toy, "bias=no") == dataclasses.replace(toy, biased=False)
    with pytest.raises(ValueError, match="routers of mixtral have no bias"):
        configure("mixtral", routing="bias=yes")
    config = configure("deepseek", mup="64", layers=2, routing="bias=no")
    assert not config.mup.biased


@pytest.mark.parametrize(
    ("family", "text", "why"),
    [
        ("mixtral", "topk=1", "unknown word of routing 'topk'; did you mean top"),
        ("mixtral", "", "there are top, gate, choice, .* balance, z, bias"),
        ("mixtral", "gate=tanh", "unknown gate of routing 'tanh'.* softmax, sigmoid"),
        ("mixtral", "choice=tokens", "did you mean token"),
        ("mixtral", "normalise=maybe", "there are yes, no"),
        (
            "mixtral",
            "top",
            "routing top=: needs a whole number of at least 1, as top=2",
        ),
        ("mixtral", "top=0", "at least 1"),
        ("mixtral", "top=1.5", "routing top=1.5: needs a whole number"),
        ("mixtral", "top=9", "top_k=9 of E=8 experts; use 1 to 8"),
        ("mixtral", "top=1,top=2", "says top twice"),
        (
            "mixtral",
            "capacity=0",
            "capacity=0: needs a number above 0, as capacity=1.25",
        ),
        ("mixtral", "capacity=inf", "needs a number above 0"),
        ("mixtral", "balance=-1", "needs a number of at least 0, as balance=0.01"),
        ("mixtral", "z=much", "z=much: needs a number"),
        ("mixtral", "groups=3", "groups are equal"),
        ("deepseek", "choice=expert", "say groups=1,bias=no too"),
        ("llama", "top=1", "llama has no experts; deepseek, mixtral, qwen3_moe have"),
    ],
)
def test_words_that_cannot_be(family, text, why):
    with pytest.raises(ValueError, match=why):
        configure(family, routing=text)


def test_only_what_is_said_changes_a_runs_id():
    plain = configure("mixtral")
    assert plain.id == "e8a26e71fd8ef3b2"
    assert configure("mixtral", routing=None) == plain
    assert configure("mixtral", routing="top=2,balance=0.02").id == plain.id
    said = configure("mixtral", routing="top=1,gate=sigmoid")
    assert said.id != plain.id
    again = RunConfig.from_json(json.loads(json.dumps(said.to_json())))
    assert (again, again.id) == (said, said.id)
    assert again.model.routing == Routing(1, "sigmoid", balance=0.02)


def test_several_are_an_axis_of_a_grid():
    texts = ("top=1", "top=2,z=1e-3", None)
    found = sweep.grid({"family": "mixtral", "routing": texts}, 8)
    said = [(c.model.routing.top_k, c.model.routing.z) for c in found]
    assert said == [(1, 0.0), (2, 1e-3), (2, 0.0)]


@pytest.mark.parametrize(
    "words",
    [
        "explain --family mixtral --routing top=1",
        "predict --family mixtral --size 8x7b --target h100:1x8 --layout fsdp=8 "
        "--batch 8 --routing top=1",
        "plan --family mixtral --size 8x7b --target h100:2x8 --batch-tokens 1M "
        "--routing top=1",
        "sweep --dry-run --family mixtral --routing top=1 choice=expert,z=1e-3",
    ],
)
def test_commands_take_a_routing(words, call):
    code, out, err = call(words)
    assert code == 0, err
    if "--dry-run" in words:
        assert "routing top=1,balance=0.02\n" in out
        assert "routing top=2,choice=expert,balance=0.02,z=0.001\n" in out


def test_fewer_experts_are_predicted_to_be_quicker(call):
    words = "plan --family mixtral --size 8x7b --target h100:4x8 --json --routing"
    seconds = []
    for routing in ("top=1", "top=2"):
        code, out, err = call(f"{words} {routing}")
        assert code == 0, err
        seconds.append(json.loads(out)[0]["step_seconds"])
    assert seconds[0] < 0.9 * seconds[1]


def test_a_family_without_experts_says_so_in_the_shell(call):
    code, _, err = call("explain --routing top=1")
    assert code == 2 and "llama has no experts; deepseek, mixtral" in err


# --- What a record tells


@pytest.fixture(scope="module")
def routed(text, cache):
    """Records of runs that drop some rows, of experts that choose, and of sigmoids."""
    ways = {
        "capacity": (CAPACITY, "capacity=0.5"),
        "expert": ("expert=4,fsdp=2", "choice=expert"),
        "sigmoid": ("expert=4,fsdp=2", "gate=sigmoid,top=1"),
    }
    return {
        name: run_here(
            configure(
                "mixtral", layout=layout, routing=said, data=(str(text),), **TINY
            ),
            cache_dir=cache,
        )
        for name, (layout, said) in ways.items()
    }


def test_a_record_tells_how_experts_were_used(routed):
    row = routed["capacity"]
    assert row.status == "ok", row.reason
    assert row.asked["routing"] == "top=2,capacity=0.5,balance=0.02"
    told = json.loads(row.to_json())["measured"]["experts"]
    assert told["steps"] == row.measured["loss"]["steps"] == [1, 2, 3]
    for name in ("imbalance", "dropped"):
        values = told[name]["values"]
        assert len(values) == 3 and values[-1] == told[name]["final"]
        assert told[name]["mean"] == pytest.approx(np.mean(values))
    # Half of the places that even loads need: half of the rows find none, or more.
    assert 0.5 <= told["dropped"]["mean"] < 1
    assert 1 <= told["imbalance"]["mean"] <= 8
    assert 0 < told["entropy"]["final"] <= np.log(8) + 1e-6
    for load_E in told["load_E"].values():
        assert len(load_E) == 8 and sum(load_E) == pytest.approx(1, abs=1e-5)
    assert max(told["load_E"]["final"]) * 8 == pytest.approx(
        told["imbalance"]["final"], abs=1e-4
    )


def test_experts_that_choose_are_as_busy_and_drop_nothing(routed):
    assert {row.status for row in routed.values()} == {"ok"}
    told = routed["expert"].measured["experts"]
    assert told["imbalance"]["values"] == pytest.approx([1, 1, 1])
    assert told["dropped"]["values"] == [0, 0, 0]
    assert routed["sigmoid"].asked["routing"] == "top=1,gate=sigmoid,balance=0.02"
    losses = {row.measured["loss"]["final"] for row in routed.values()}
    assert len(losses) == 3 and max(losses) < 6


def test_the_table_and_the_page_tell_it(routed, words, cache, tmp_path):
    plain = run_here(configure(layout="fsdp", devices=8, **words), cache_dir=cache)
    assert plain.status == "ok", plain.reason
    assert "experts" not in (plain.measured or {}) and "routing" not in plain.asked
    runs = [routed["capacity"], plain]
    frame = studies.frame(runs)
    told = runs[0].measured["experts"]
    for column, name in (
        ("expert_imbalance", "imbalance"),
        ("expert_dropped", "dropped"),
        ("expert_entropy", "entropy"),
    ):
        assert frame[column][0] == told[name]["mean"]
        assert frame[column].isna().tolist() == [False, True]
    assert frame["routing"].isna().tolist() == [False, True]
    shown = studies.table(frame)
    assert "load imbalance" in shown and "rows dropped" in shown
    assert "rows dropped" not in studies.table(studies.frame([plain]))
    for run in runs:
        record.append(tmp_path, run)
    page = studies.report(tmp_path).read_text()
    assert "experts.load_E.mean" in page and "experts.imbalance.mean" in page
    assert "experts.imbalance.values" not in page


def test_a_long_run_and_branches_tell_it_too(words, cache, tmp_path):
    words = {**words, "layout": "data=1", "target": "cpu:1", "steps": 8}
    wsd = {"schedule": "wsd", "warmup": 2}
    config, shorter = (
        configure("mixtral", **{**words, **wsd, "steps": steps}) for steps in (8, 5)
    )
    alone = run_training(config, LongRun(tmp_path / "long", sample=0), cache_dir=cache)
    told = (alone.record.measured or {})["experts"]
    done = run_branches([config, shorter], tmp_path, cache_dir=cache)
    same, other = ((row.measured or {})["experts"] for row in done.records)
    assert same["steps"] == told["steps"] == list(range(1, 9))
    assert same["imbalance"]["values"] == pytest.approx(told["imbalance"]["values"])
    assert same["load_E"]["mean"] == pytest.approx(told["load_E"]["mean"], abs=1e-5)
    assert other["steps"] == [1, 2, 3, 4, 5]
    trunk = same["imbalance"]["values"][:4]
    assert other["imbalance"]["values"][:4] == trunk
    mean = np.mean(other["imbalance"]["values"])
    assert other["imbalance"]["mean"] == pytest.approx(mean)
    assert sum(other["load_E"]["mean"]) == pytest.approx(1, abs=1e-5)


def test_a_sample_needs_tokens_that_choose(words, cache, tmp_path):
    words = {**words, "layout": "data=1", "target": "cpu:1"}
    config = configure("mixtral", routing="choice=expert", **words)
    with pytest.raises(ValueError, match="say --sample 0, or train with choice=token"):
        run_training(config, LongRun(tmp_path), cache_dir=cache)
