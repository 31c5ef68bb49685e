"""A law joined with a machine: which size, tokens and layout, and what it costs."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import scaling_lab as lab
from scaling_lab.plan import ask, laws, plan
from scaling_lab.plan.ladder import ladder, named
from scaling_lab.plan.sizes import machine_of
from scaling_lab.plan.study import DAY, Spending, fastest, study

LAW = "chinchilla:besiroglu_2024"
VALUES = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36}


def question(name, **words):
    words = {"batch_tokens": "1M", "length": 4096} | words
    return ask("llama", name, "h100:2x8", **words)


@pytest.fixture(scope="module")
def planned():
    return fastest([question(name) for name in ("1b", "8b", "70b")])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fit with draws, of points that follow a law with a little noise."""
    random = np.random.default_rng(0)
    n, d = np.meshgrid(np.geomspace(1e8, 1e10, 6), np.geomspace(1e9, 1e12, 6))
    n, d = n.ravel(), d.ravel()
    loss = 1.8 + 480 / n**0.35 + 2000 / d**0.36
    loss = loss * np.exp(0.003 * random.standard_normal(len(n)))
    table = pd.DataFrame({"params": n, "tokens": d, "loss": loss})
    found = lab.fit(table, law="chinchilla", bootstrap=60)
    path = tmp_path_factory.mktemp("fit") / "fit.json"
    path.write_text(json.dumps(found.to_json()))
    return path


# --- The law


def test_a_reference_is_its_formula():
    curve = laws.read(LAW)
    v = curve.values
    wanted = v["E"] + v["A"] / 7e9 ** v["alpha"] + v["B"] / 2e12 ** v["beta"]
    np.testing.assert_allclose(curve.loss(7e9, 2e12), wanted)
    tokens = curve.tokens_for(7e9, float(wanted))
    np.testing.assert_allclose(tokens, 2e12, rtol=1e-4)
    assert curve.tokens_for(7e9, v["E"]) is None


def test_a_fit_hands_its_draws_on(fitted):
    curve = laws.read(fitted)
    assert len(curve.draws) > 50
    losses = [float(curve.loss(1e9, 1e11, each)) for each in curve.draws]
    assert 0 < np.std(losses) < 0.02
    assert curve.fitted["n"] == pytest.approx((1e8, 1e10))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chinchila:x", "no law 'chinchila'; nearest: chinchilla"),
        ("chinchilla", "whose constants\\? say chinchilla:hoffmann_2022 or"),
        ("chinchilla:besirolu", "did you mean besiroglu_2024"),
        ("isoflop:hoffmann_2022", "says where compute is best spent and not"),
        ("data_constrained:muennighoff_2023", "needs unique"),
    ],
)
def test_what_is_no_law_of_sizes_and_tokens_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        laws.read(text)


def test_a_file_that_is_no_fit_is_refused(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text('{"choices": []}')
    with pytest.raises(ValueError, match="is no fit"):
        laws.read(file)
    with pytest.raises(OSError):
        laws.read(tmp_path / "nothing.json")


# --- The sizes


def test_a_ladder_goes_through_the_size_it_is_like():
    shapes = ladder("llama", "8b", 1e9, 2e10)
    params = [shape.params for shape in shapes]
    assert params == sorted(params) and len(params) == len(set(params)) >= 4
    like = next(shape for shape in shapes if shape.d_model == 4096)
    assert like.params == named("llama", ["8b"])[0].params
    with pytest.raises(ValueError, match="widen --params"):
        ladder("llama", "8b", 1e9, 1.0001e9)


def test_so_many_chips_are_a_machine():
    assert machine_of("h100", 64) == "h100:8x8"
    assert machine_of("tpu-v5p:4x4x4") == "tpu-v5p:4x4x4"
    with pytest.raises(ValueError, match="no machine of 65 h100 is known; nearest: 64"):
        machine_of("h100", 65)
    assert machine_of("h100:8x8", 64) == "h100:8x8"
    with pytest.raises(ValueError, match="'h100:8x8' has 64 chips; leave --chips 65"):
        machine_of("h100:8x8", 65)
    with pytest.raises(ValueError, match="give --chips"):
        machine_of("h100")


# --- The answer


def test_tokens_are_the_planner_s_and_the_loss_the_law_s(planned):
    found = study(planned, laws.read(LAW), Spending(10))
    assert [each.loss for each in found.sizes] == sorted(e.loss for e in found.sizes)
    for each in found.sizes:
        asked = next(q for q, _ in planned.found if q.shape.name == each.name)
        best = plan(asked, top=1).choices[0]
        assert each.choice.layout == best.layout
        tokens = asked.tokens / best.step_seconds * 10 * DAY
        np.testing.assert_allclose(each.tokens, tokens)
        np.testing.assert_allclose(each.loss, found.curve.loss(each.params, tokens))
        assert each.loss_low < each.loss < each.loss_high
    shares = [each.best_share for each in found.sizes]
    assert sum(shares) == pytest.approx(1)


def test_more_days_want_a_larger_size(planned):
    curve = laws.read(LAW)
    best = [study(planned, curve, Spending(d)).sizes[0].params for d in (1, 1000)]
    assert best[0] < best[1]


def test_serving_takes_its_time_and_wants_a_smaller_size(planned):
    curve = laws.read(LAW)
    free = study(planned, curve, Spending(100))
    busy = study(planned, curve, Spending(100, serve_tokens=3e12))
    tokens = {each.name: each.tokens for each in free.sizes}
    for each in busy.sizes:
        np.testing.assert_allclose(each.tokens, tokens[each.name] - 1e12, rtol=1e-6)
    assert busy.sizes[0].params <= free.sizes[0].params
    with pytest.raises(ValueError, match="nothing is left to train in"):
        study(planned, curve, Spending(1, serve_tokens=1e15))


def test_the_law_s_doubt_is_carried_on(planned):
    sure = laws.read(LAW)
    floors = [{**sure.values, "E": sure.values["E"] + x} for x in (-0.2, 0.0, 0.2)]
    found = study(planned, dataclasses.replace(sure, draws=tuple(floors)), Spending(10))
    best = found.sizes[0]
    assert best.loss_low < best.loss - 0.19 and best.loss_high > best.loss + 0.19


def test_far_from_the_points_is_said(planned, fitted):
    found = study(planned, laws.read(fitted), Spending(3000))
    assert any("outside what the law was fitted on" in note for note in found.notes)
    assert any("largest size that was tried" in note for note in found.notes)


def test_a_curve_of_equal_loss_costs_chip_hours_energy_and_money(planned):
    spending = Spending(10, price=2.0, watts=1000.0)
    found = study(planned, laws.read(LAW), spending)
    best = found.sizes[0]
    rows = found.iso_loss([best.loss, 1.0])
    assert {row["loss"] for row in rows} == {best.loss}  # below the floor: no row
    row = next(row for row in rows if row["name"] == best.name)
    np.testing.assert_allclose(row["chip_hours"], 16 * 10 * 24, rtol=1e-4)
    np.testing.assert_allclose(row["energy_kwh"], row["chip_hours"])
    np.testing.assert_allclose(row["money"], 2 * row["chip_hours"])
    assert all(other["days"] >= row["days"] * 0.9999 for other in rows)
    unpriced = study(planned, laws.read(LAW), Spending(10)).iso_loss([best.loss])
    assert {(row["energy_kwh"], row["money"]) for row in unpriced} == {(None, None)}


def test_what_does_not_fit_is_told():
    small = [question("70b", length=8192), question("1b", length=8192)]
    target = ask("llama", "1b", "h100:1x2").target
    small = [dataclasses.replace(each, target=target) for each in small]
    found = study(fastest(small), laws.read(LAW), Spending(10))
    assert [each.name for each in found.sizes] == ["llama 1b"]
    assert found.unfit == ("llama 70b: too large for h100:1x2",)
    with pytest.raises(ValueError, match="no size fits on h100:1x2"):
        fastest(small[:1])


@pytest.mark.parametrize("words", [{"days": 0}, {"days": 1, "price": -2.0}])
def test_spending_that_cannot_be(words):
    with pytest.raises(ValueError, match="must be above 0"):
        Spending(**words)


# --- The command


def test_the_command(call, fitted):
    words = (
        f"study plan --law {fitted} --target h100 --chips 16 --days 20 --length 4096 "
        "--batch-tokens 1M --sizes 1b 8b --price 2 --json plan.json"
    )
    code, out, _ = call(words)
    assert code == 0
    assert "best: llama 8b" in out and "to reach a loss of" in out
    data = json.loads(open("plan.json").read())
    assert data["chips"] == 16 and data["law_draws"] > 50
    assert data["budget"] == {
        "chip_hours": 7680.0,
        "energy_kwh": None,
        "money": 15360.0,
    }
    assert {"layout", "params", "tokens", "loss", "loss_low"} <= set(data["best"])
    assert [row["name"] for row in data["iso_loss"]] == ["llama 1b", "llama 8b"][
        -len(data["iso_loss"]) :
    ]


@pytest.mark.parametrize("words", ["mixtral --sizes 8x7b", "gemma3 --sizes 1b"])
def test_families_without_an_8b_have_their_own_sizes(call, words):
    code, out, err = call(
        f"study plan --family {words} --target h100 --chips 64 --length 4096 "
        "--batch-tokens 1M"
    )
    assert code == 0, err
    assert "best: " in out


def test_sizes_that_serving_leaves_no_time_are_told(planned):
    found = study(planned, laws.read(LAW), Spending(100, serve_tokens=1e13))
    left = {each.name for each in found.sizes}
    assert left and "llama 70b" not in left
    assert "llama 70b: serving leaves no time to train" in found.unfit


@pytest.mark.parametrize("values", [None, {}, VALUES | {"E": None}])
def test_a_fit_without_its_constants_is_refused(values, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"law": "chinchilla", "parameters": values}))
    with pytest.raises(ValueError, match="no value of .*E"):
        laws.read(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--law isoflop", "isoflop"),
        ("--law besiroglu_2024", "say chinchilla:besiroglu_2024"),
        ("--target h100", "give --chips"),
        ("--target h100:1x8 --days 0", "days=0"),
        ("--target h100:1x8 --sizes 9b", "unknown size of llama '9b'"),
        ("--target h100:1x8 --batch-tokens x", "'x' tokens"),
    ],
)
def test_bad_words_are_one_message(call, words, said):
    code, _, err = call(f"study plan {words}")
    assert code == 2 and said in err and "Traceback" not in err


def test_help_says_how(call):
    code, out, _ = call("study --help")
    assert code == 0 and "scaling-lab study plan" in out and "--serve-tokens" in out


def test_of_experts_a_law_sees_those_a_token_meets():
    asked = ask("mixtral", "8x7b", "h100:2x8", batch_tokens="1M", length=4096)
    found = study(fastest([asked]), laws.read(LAW), Spending(10))
    best = found.sizes[0]
    assert best.active_params < best.params / 3
    wanted = found.curve.loss(best.active_params, best.tokens)
    np.testing.assert_allclose(best.loss, wanted)
    assert any("idle experts" in note for note in found.notes)
