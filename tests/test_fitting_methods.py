"""Envelopes, parabolas, projection and intervals where they used to mislead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress
from scipy.stats import t as student

import scaling_lab as lab
from scaling_lab.studies import laws
from scaling_lab.studies.fitting import figure
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.panel import Line, _axis
from scaling_lab.studies.fitting.profiles import profile
from scaling_lab.studies.fitting.solve import solve
from scaling_lab.studies.fitting.table import points_of

CHINCHILLA = laws.law("chinchilla")
TRUE = CHINCHILLA.references["besiroglu_2024"].values
PATH = CHINCHILLA.path(TRUE)


def frame(n, d, noise=0.0, seed=0, **more):
    """Runs of Chinchilla's law."""
    loss = CHINCHILLA.predict(TRUE, {"n": n, "d": d})
    loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss, **more})


def curves(sizes=25, noise=0.0, seed=0):
    """Training curves of sizes whose smallest and largest win at many computes."""
    n = np.geomspace(7e7, 1.6e10, 25)[:sizes].repeat(60)
    return frame(n, n * np.tile(np.geomspace(1, 400, 60), sizes), noise, seed)


def isoflop(sizes, budgets=(6e18, 1e19, 3e19, 6e19), noise=0.004, seed=0):
    """Sizes about every budget's best one."""
    c = np.repeat(budgets, sizes)
    about = np.tile(np.exp(np.linspace(-1.2, 1.2, sizes)), len(budgets))
    n = PATH.n_scale * c**PATH.a * about
    return frame(n, c / (6 * n), noise, seed, flops=c)


def scattered(points, noise=0.007, seed=0):
    """Runs at any size and any tokens per parameter."""
    random = np.random.default_rng(seed)
    n = np.exp(random.uniform(np.log(5e7), np.log(1.6e10), points))
    d = n * np.exp(random.uniform(np.log(3), np.log(200), points))
    return frame(n, d, noise, seed)


# --- Envelopes


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_computes_where_an_end_wins_do_not_bend_the_envelope(noise):
    found = [
        lab.fit(curves(noise=noise, seed=seed), law="approach1", bootstrap=60)
        for seed in range(4)
    ]
    a = np.mean([each.path.a for each in found])
    assert a == pytest.approx(PATH.a, abs=0.012)
    for each in found:
        low, high = each.exponent("a")
        assert low < PATH.a < high
        assert any("of 1500 computes left out" in note for note in each.points.notes)
        sizes = [best.params for best in each.optima]
        assert 7.1e7 < min(sizes) and max(sizes) < 1.5e10


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (1, "1 size .7e"),
        (2, "2 sizes .7e.07, 8.78e.07.*below the smallest"),
        (3, "needs 3"),
    ],
)
def test_an_envelope_of_few_sizes_is_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        lab.fit(curves(sizes), law="approach1", bootstrap=0)


def test_an_envelope_of_four_sizes_between_is_doubted():
    found = lab.fit(curves(6), law="approach1", bootstrap=0)
    assert any("4 sizes between" in each for each in found.warnings)


def test_of_points_at_one_compute_only_the_lowest_is_on_the_envelope():
    found = lab.fit(isoflop(9, noise=0.0), law="approach1", bootstrap=0)
    assert found.words.split("the ")[1].startswith("4 places")
    assert found.path.a == pytest.approx(PATH.a, abs=1e-6)
    assert any("single points, no curves" in each for each in found.warnings)


# --- IsoFLOPs


@pytest.mark.parametrize("points", [30, 60, 100, 245])
def test_scattered_points_are_no_budgets(points):
    with pytest.raises(ValueError, match=f"of {points} points belong.*chinchilla"):
        lab.fit(scattered(points), law="isoflop", bootstrap=0)


def test_budgets_of_uneven_flops_stay_budgets_and_a_few_others_are_left_out():
    table = isoflop(9, noise=0.001)
    table["flops"] *= np.exp(np.random.default_rng(0).normal(0, 0.03, len(table)))
    table["tokens"] = table.flops / 6 / table.params
    plain = lab.fit(table, law="isoflop", bootstrap=0)
    assert len(plain.optima) == 4 and not plain.warnings
    n = np.geomspace(1e8, 1e9, 6)
    wide = frame(n, np.geomspace(2e22, 4.1e22, 6) / 6 / n, flops=6.0)
    wide["flops"] = 6 * wide.params * wide.tokens
    found = lab.fit(pd.concat([table, wide]), law="isoflop", bootstrap=0)
    assert found.path == plain.path
    assert any("6 points follow each other too closely" in w for w in found.warnings)


def test_exponents_that_do_not_add_up_to_one_are_doubted():
    table = isoflop(9, noise=0.0)
    table["tokens"] *= (table.flops / 6e18) ** 0.2
    found = lab.fit(table, law="isoflop", bootstrap=0)
    assert any("a + b = 1.2" in each for each in found.warnings)


@pytest.mark.parametrize("resample", ["case", "parametric"])
def test_three_sizes_a_budget_give_no_interval(resample):
    found = lab.fit(isoflop(3), law="isoflop", resample=resample, bootstrap=40)
    data = found.to_json()
    assert data["a_ci"] is None and data["b_ci"] is None and data["a"] is not None
    assert data["intervals"] == {}
    assert any("goes through them" in each for each in found.warnings)
    assert found.figure().startswith("<svg")
    seeds = pd.concat([isoflop(3, seed=seed) for seed in (0, 1)])
    again = lab.fit(seeds, law="isoflop", resample=resample, bootstrap=40)
    low, high = again.exponent("a")
    assert high - low > 0.01 and not again.warnings


def test_a_budget_of_three_sizes_has_the_noise_of_the_others():
    table = pd.concat([isoflop(3, (6e18, 6e20)), isoflop(9, (3e19, 1e20))])
    found = lab.fit(table, law="isoflop", bootstrap=200)
    low, high = found.exponent("a")
    assert high - low > 0.05
    assert any("2 budgets have 3 points" in each for each in found.warnings)


def test_noise_is_as_wide_whatever_weights_are_counted_in():
    table = pd.concat([isoflop(3, (6e18, 6e20)), isoflop(9, (3e19, 1e20))])
    plain = lab.fit(table, law="isoflop", bootstrap=60)
    table["sigma"] = 0.01
    weighed = lab.fit(table, law="isoflop", bootstrap=60, weight_column="sigma:sigma")
    assert weighed.exponent("a") == pytest.approx(plain.exponent("a"), abs=1e-6)


# --- Kaplan's law


def test_kaplans_path_is_where_its_loss_is_lowest():
    law = laws.law("kaplan")
    values = law.references["kaplan_2020"].values
    n = np.geomspace(1e6, 1e13, 200_001)
    for flops in (1e19, 1e23):
        best = n[np.argmin(law.predict(values, {"n": n, "d": flops / 6 / n}))]
        path = law.best_path(values)
        assert path.n_scale * flops**path.a == pytest.approx(best, rel=1e-3)
        assert path.d_scale * flops**path.b == pytest.approx(flops / 6 / best, rel=1e-3)
    assert path.a == pytest.approx(0.103 / 0.179) and path.a + path.b == 1
    assert law.best_path({**values, "alpha_N": -0.1}) is None
    assert law.best_path({**values, "alpha_D": -0.1, "alpha_N": -0.1}) is None


def test_a_fit_of_kaplans_law_has_optima_and_their_intervals():
    law, table = laws.law("kaplan"), scattered(80, noise=0.0)
    values = law.references["kaplan_2020"].values
    noise = np.exp(0.003 * np.random.default_rng(1).normal(size=80))
    table["loss"] = noise * law.predict(values, {"n": table.params, "d": table.tokens})
    data = lab.fit(table, law="kaplan", bootstrap=60).to_json()
    assert data["a"] == pytest.approx(0.575, abs=0.03)
    assert data["a_ci"][0] < data["a"] < data["a_ci"][1] and data["b_ci"]
    assert len(data["optima"]) > 3 and all(each["loss"] for each in data["optima"])


# --- Variable projection


@pytest.mark.parametrize("seed", range(3))
def test_projection_ends_where_descent_does_on_a_law_with_a_negative_exponent(seed):
    law, random = laws.law("sparsity"), np.random.default_rng(seed)
    values, table = law.references["abnar_2025"].values, scattered(60, seed=seed)
    table["active"] = random.choice([1, 0.5, 0.25, 0.1, 0.05, 0.02], 60)
    at = {"n": table.params, "d": table.tokens, "active": table.active}
    noise = np.exp(0.007 * random.normal(size=60))
    table["loss"] = law.predict(values, at) * noise
    points = points_of(table, law, Options())
    descent = solve(law, points, Options(loss="mse"))
    projected = solve(law, points, Options(solver="projection"))
    assert projected.value == pytest.approx(descent.value, rel=1e-6)
    assert law.values(projected.at)["lambda"] < 0


def test_projection_says_how_many_seeds_agree():
    found = lab.fit(scattered(60), solver="projection", bootstrap=0)
    starts = found.to_json()["starts"]
    assert starts["made"] == 12 and 2 <= starts["agreeing"] <= 12
    assert not any("starts" in each for each in found.warnings)


# --- Profiles


def line(points, seed=0, spread=0.02):
    """A power law with normal noise: a straight line of logarithms."""
    random = np.random.default_rng(seed)
    x = np.exp(random.uniform(0, 5, points))
    return pd.DataFrame(
        {"x": x, "y": 3 * x**0.4 * np.exp(random.normal(0, spread, points))}
    )


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_profile_of_a_line_is_students_interval(share):
    table = line(6)
    words = {"law": "power", "column": {"x": "x", "y": "y"}, "bootstrap": 0}
    profile = lab.fit(table, interval=share, **words).curve.profiles["a"]
    exact = linregress(np.log(table.x), np.log(table.y))
    half = student.ppf((1 + share) / 2, 4) * exact.stderr
    assert profile.low == pytest.approx(exact.slope - half, abs=0.01 * half)
    assert profile.high == pytest.approx(exact.slope + half, abs=0.01 * half)


def test_hubers_intervals_are_as_wide_as_its_loss_is_worth_on_normal_noise():
    # Absolute values know a line sqrt(pi / 2) times less well than squares do.
    law, wider = laws.law("power"), []
    for seed in range(16):
        widths = []
        for loss in ("huber", "log_mse"):
            options = Options(loss=loss, column=("x=x", "y=y"))
            solved = solve(law, points_of(line(60, seed), law, options), options)
            found = profile(solved, law, "a", 0.95)
            widths.append(found.high - found.low)
        wider.append(widths[0] / widths[1])
    assert np.mean(wider) == pytest.approx(np.sqrt(np.pi / 2), rel=0.12)


def test_few_points_to_spare_are_told_and_the_share_is_written():
    found = lab.fit(scattered(9), interval=0.9, bootstrap=40)
    assert any("leave 4 to tell the noise" in each for each in found.warnings)
    assert "90% by profile" in str(found) and "95%" not in str(found)
    assert "90 % red" in found.figure()
    enough = lab.fit(scattered(10), bootstrap=0)
    assert not any("to tell the noise" in each for each in enough.warnings)


def test_profiles_far_from_the_best_are_refits():
    law, random = laws.law("routed"), np.random.default_rng(0)
    table = scattered(70).drop(columns="tokens")
    random.uniform(size=140)
    table["experts"] = random.choice([2, 4, 8, 16, 32, 64, 128, 256, 512], 70)
    at = {"n": table.params, "experts": table.experts.astype(float)}
    values = law.references["clark_2022_s_base"].values
    table["loss"] = law.predict(values, at) * np.exp(0.007 * random.normal(size=70))
    points = points_of(table, law, Options())
    best = solve(law, points, Options())
    found = profile(best, law, "d", 0.95)
    for value, objective in list(zip(found.values, found.objective, strict=True))[::5]:
        refit = solve(law, points, Options(fix=(f"d={float(value)!r}",)))
        assert objective == pytest.approx(refit.value, rel=1e-3)
    falls = np.diff(found.objective)
    assert (falls[:10] < 0).all() and (falls[10:] > 0).all()


def test_ellipses_are_inside_their_axes_and_scattered_points_have_no_budgets():
    found = lab.fit(scattered(40), bootstrap=60)
    assert "At the same FLOPs" not in found.figure()
    assert "At the same FLOPs" in lab.fit(isoflop(9), bootstrap=0).figure()
    (panel,) = figure._cloud(found)
    lines = [each for each in panel.marks if isinstance(each, Line)]
    assert len(lines) == 2
    for which in ("x", "y"):
        axis = _axis(panel, which, 0.0, 1.0)
        for each in lines:
            ends = getattr(each, which)
            assert axis.low < min(ends) and max(ends) < axis.high
