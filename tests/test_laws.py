"""Every law: derivatives, terms, published constants; and the parts of the solvers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from scaling_lab.studies import laws
from scaling_lab.studies.fitting.descend import descend, finish
from scaling_lab.studies.fitting.objective import Objective, Problem
from scaling_lab.studies.fitting.project import Projection
from scaling_lab.studies.law import ROLES, design

CURVES = [name for name in laws.names() if laws.law(name).procedure is None]


def columns(points=9, seed=0):
    random = np.random.default_rng(seed)

    def spread(low, high):
        return np.exp(random.uniform(np.log(low), np.log(high), points))

    found = {"n": spread(1e7, 1e10), "d": spread(1e9, 1e12), "x": spread(1, 1e4)}
    found |= {
        "c": 6 * found["n"] * found["d"],
        "ratio": found["d"] / found["n"],
        "unique": found["d"] / spread(0.8, 60),
        "width": spread(100, 4000),
        "depth": spread(3, 80),
        "experts": spread(2, 256),
        "granularity": spread(1, 16),
        "active": spread(0.02, 1),
        "bits": spread(3, 16),
    }
    return found


def starts(law):
    ends = [[each.starts[0], each.starts[-1]] for each in law.parameters]
    return np.array(
        [
            law.coordinates(dict(zip(law.names, values, strict=True)))
            for values in zip(*ends, strict=True)
        ]
    )


def test_the_promised_laws_are_there():
    promised = "kaplan chinchilla approach1 isoflop data_constrained overtraining "
    promised += "width_depth routed fine_grained sparsity precision learning_rate "
    assert {*promised.split(), "batch_size", "power", "power_offset"} <= {*laws.names()}


def test_another_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="nearest: chinchilla"):
        laws.law("chinchila")


@pytest.mark.parametrize("name", laws.names())
def test_a_law_says_what_it_is(name):
    law = laws.law(name)
    assert law.title and law.formula and law.parameters
    assert set(law.needs) <= set(ROLES) and law.response in ROLES
    assert sum(map(bool, (law.terms, law.curve, law.procedure))) == 1
    for parameter in law.parameters:
        assert parameter.name in law.formula, parameter.name
    for key, reference in law.references.items():
        assert set(reference.values) <= set(law.names), key
        assert reference.source and reference.checked in ("read", "secondary")


@pytest.mark.parametrize("name", CURVES)
def test_derivatives_are_those_of_differences(name):
    law = laws.law(name)
    model, at = law.on(columns()), starts(law)
    _, state = model.log_values(at)
    exact, weights = model.jacobian(state), np.random.default_rng(1).normal(size=(2, 9))
    step = 1e-6
    for place in range(at.shape[1]):
        move = step * np.eye(at.shape[1])[place]
        up, down = model.log_values(at + move)[0], model.log_values(at - move)[0]
        numeric = (up - down) / (2 * step)
        np.testing.assert_allclose(exact[..., place], numeric, rtol=1e-5, atol=1e-7)
    pulled = np.einsum("bnp,bn->bp", exact, weights)
    np.testing.assert_allclose(
        model.pull(state, weights), pulled, rtol=1e-10, atol=1e-9
    )


@pytest.mark.parametrize(
    ("name", "key", "at", "loss"),
    [
        # Chinchilla's own 70B on 1.4T tokens, by its constants.
        ("chinchilla", "hoffmann_2022", {"n": 70e9, "d": 1.4e12}, 1.936),
        ("kaplan", "kaplan_2020", {"n": 1.5e9, "d": 22e9}, 2.313),
        (
            "fine_grained",
            "krajewski_2024",
            {"n": 1e9, "d": 1e11, "granularity": 8},
            2.92,
        ),
        ("routed", "clark_2022_s_base", {"n": 1.3e9, "experts": 1}, 2.25),
    ],
)
def test_published_constants_give_published_sizes_of_loss(name, key, at, loss):
    law = laws.law(name)
    found = law.predict(law.references[key].values, at)
    assert found[0] == pytest.approx(loss, rel=0.02)


def test_a_repeated_token_is_worth_less_by_the_papers_numbers():
    # The two values printed in the README of huggingface/datablations.
    law = laws.law("data_constrained")
    values = law.references["muennighoff_2023"].values
    at = {"n": [6.34e9, 8.67e9], "d": [242e9, 178e9], "unique": [25e9, 25e9]}
    found = law.predict(values, {k: np.array(v) for k, v in at.items()})
    assert found.tolist() == pytest.approx([2.2256440889984477, 2.2269634075087867])


@pytest.mark.parametrize("name", ["chinchilla", "overtraining"])
def test_the_path_is_where_the_law_is_lowest(name):
    law = laws.law(name)
    values = next(iter(law.references.values())).values
    path, flops = law.path(values), 1e21
    n = np.geomspace(1e7, 1e12, 20001)
    d = flops / (6 * n)
    loss = law.predict(values, {"n": n, "d": d, "c": 6 * n * d, "ratio": d / n})
    best = n[np.argmin(loss)]
    assert path.n_scale * flops**path.a == pytest.approx(best, rel=2e-3)
    assert path.d_scale * flops**path.b == pytest.approx(flops / (6 * best), rel=2e-3)


def noisy(points=60, seed=3):
    law, table = laws.law("chinchilla"), columns(points, seed)
    values = law.references["besiroglu_2024"].values
    noise = 0.01 * np.random.default_rng(seed).standard_t(3, points)
    return law, table, np.log(law.predict(values, table)) + noise


def problem(kind="huber", delta=1e-3):
    law, table, log_y = noisy()
    free = tuple(range(len(law.parameters)))
    weight = np.ones(len(log_y))
    return Problem(
        law.on(table), Objective(kind, delta), log_y, weight, free, np.zeros(5)
    )


@pytest.mark.parametrize("kind", ["huber", "log_mse", "mse"])
def test_descents_side_by_side_are_scipys_one_by_one(kind):
    many, law = problem(kind), laws.law("chinchilla")
    weight = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 4)
    many = dataclasses.replace(many, weight=weight.astype(float))
    start = law.coordinates(law.references["besiroglu_2024"].values)
    found = descend(many, np.repeat(start[None], 4, 0))
    assert found.rested.all()
    for place in range(4):
        one = dataclasses.replace(many, weight=weight[place].astype(float))

        def fun(at, one=one):
            value, slope = one.value(at[None])
            return value[0] * 1e4, slope[0] * 1e4

        options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10}
        their = minimize(
            fun, found.at[place] + 0.01, jac=True, method="L-BFGS-B", options=options
        )
        assert found.value[place] <= their.fun / 1e4 * (1 + 1e-8)
        assert finish(one, found.at[place])[1] == pytest.approx(found.value[place])


def test_projection_and_descent_of_squares_are_one_minimum():
    law, table, log_y = noisy()
    y = np.exp(log_y)
    best = Projection(law, design(law, table), y, np.ones(len(y))).best()
    squares = problem("mse")
    found = finish(squares, descend(squares, best.at[None] + 0.02).at[0])
    assert best.value == pytest.approx(found[1], rel=1e-9)
    assert law.values(best.at)["beta"] == pytest.approx(
        law.values(found[0])["beta"], rel=1e-4
    )


def test_projection_solves_its_coefficients_and_none_is_negative():
    law, table, log_y = noisy()
    search = Projection(law, design(law, table), np.exp(log_y), np.ones(60))
    basis = np.stack([np.ones(60), table["n"] ** -0.9, table["d"] ** -0.05], 1)
    _, rest = nnls(basis / basis.max(0), np.exp(log_y))
    value, slope, _ = search.solve(np.array([0.9, 0.05]))
    assert value == pytest.approx(rest**2, rel=1e-9)
    step = np.array([1e-5, 0])
    up, down = (search.solve(np.array([0.9, 0.05]) + s)[0] for s in (step, -step))
    assert slope[0] == pytest.approx((up - down) / 2e-5, rel=1e-4)


def test_hubers_loss_is_scipys():
    from scipy.special import huber

    far = np.linspace(-0.01, 0.01, 21)[None]
    value, by_far = Objective("huber", 2e-3).parts(far, np.zeros(21), np.ones(21))
    assert value[0] == pytest.approx(huber(2e-3, far).sum())
    assert by_far[0] == pytest.approx(np.clip(far[0], -2e-3, 2e-3))
