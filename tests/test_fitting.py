"""Fits of published data to published constants, and tables that cannot be fitted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import scaling_lab as lab
from scaling_lab.record import RunRecord, append
from scaling_lab.studies import laws
from scaling_lab.studies.fitting import reading

TRUE = laws.law("chinchilla").references["besiroglu_2024"].values


@pytest.fixture
def published(shared):
    """A published data set's path, by its name."""

    def find(name):
        path = shared / "data" / "scaling_laws" / name
        if not path.exists():
            pytest.skip(f"needs the published data set {name}")
        return path

    return find


def made(points=80, noise=0.004, seed=0, **more):
    """Runs of a known law, every budget with sizes about its best one."""
    random = np.random.default_rng(seed)
    law = laws.law("chinchilla")
    path = law.path(TRUE)
    c = np.repeat(np.geomspace(1e18, 1e21, 8), points // 8)
    n = path.n_scale * c**path.a * np.tile(np.geomspace(0.2, 5, points // 8), 8)
    d = c / (6 * n)
    loss = law.predict(TRUE, {"n": n, "d": d}) * np.exp(
        noise * random.normal(size=len(c))
    )
    return pd.DataFrame({"params": n, "tokens": d, "flops": c, "loss": loss, **more})


# --- Published data


@pytest.mark.parametrize(
    ("dataset", "E", "a", "b", "eta"),
    [
        ("c4_original", 1.508, 141.3, 189.5, 0.121),
        ("rpj", 1.837, 212.2, 366.7, 0.136),
        ("rw_original", 1.734, 157.1, 246.2, 0.127),
    ],
)
def test_gadres_twelve_constants(dataset, E, a, b, eta, published):
    table = pd.read_csv(published("gadre_overtraining/gadre_models.csv"))
    table = table[table.dataset == dataset]
    small = (table.params < 5e8) & (table.multiplier_of_20 == 1)
    smallest = (table.params < 2e7) & (table.multiplier_of_20 == 16)
    words = {"n_column": "params", "loss_column": "loss_c4_val", "bootstrap": 0}
    for solver in (None, "projection"):
        rows = table[small | smallest]
        found = lab.fit(rows, law="overtraining", solver=solver, **words)
        got = found.parameters
        assert len(found.points) == 5
        assert round(got["E"], 3) == E and round(got["eta"], 3) == eta
        assert round(got["a"], 1) == a and round(got["b"], 1) == b


PATH = [
    ("base", "long", "kaplan", "kaplan"),
    ("base", "long", "kaplan", "standard"),
    ("base", "short", "kaplan", "standard"),
    ("base", "short", "chinchilla", "standard"),
    ("tuned", "short", "const", "standard"),
]


@pytest.mark.parametrize(
    ("file", "dataset", "exponents"),
    [
        ("summary_df", "rw", [0.835, 0.706, 0.602, 0.571, 0.497]),
        ("summary_df_owt2", "owt2", [0.864, 0.699, 0.603, 0.574, 0.518]),
    ],
)
def test_porians_path_from_kaplan_to_chinchilla(file, dataset, exponents, published):
    table = published("porian/porian_optimal_pairs.csv")
    found = []
    for hparams, warmup, decay, count in PATH:
        fit = lab.fit(
            table,
            law="power",
            column={"x": "flops", "y": "n_star"},
            weight_column="sigma:n_star_std",
            where=[f"file={file}", f"dataset={dataset}", f"hparams={hparams}"]
            + [f"warmup={warmup}", f"decay={decay}", f"param_count={count}"],
            bootstrap=0,
        )
        found.append(round(fit.parameters["a"], 3))
    assert found == exponents


def test_porians_points_by_parabolas_walk_the_same_path(published):
    table = published("porian/porian_isoflop_points.csv")
    found = []
    for hparams, warmup, decay, count in (PATH[0], PATH[2], PATH[4]):
        where = [f"hparams={hparams}", f"warmup={warmup}", f"decay={decay}"]
        where += [f"param_count={count}", "file=summary_df"]
        fit = lab.fit(table, law="isoflop", where=where, window=4, bootstrap=60)
        low, high = fit.exponent("a")
        assert low < fit.path.a < high
        found.append(fit.path.a)
    assert found == pytest.approx([0.835, 0.602, 0.497], abs=0.05)


def test_the_objective_of_repeated_data_and_that_it_is_flat(published):
    law = laws.law("data_constrained")
    base = dict(law.references["muennighoff_2023"].values)
    fitted = {name: base.pop(name) for name in ("R_D", "R_N")}
    found = lab.fit(
        published("datablations/datablations_fit_points_182.csv"),
        law="data_constrained",
        fix=base,
        bootstrap=0,
    )
    theirs = found.curve.references["muennighoff_2023"]
    assert theirs == pytest.approx(0.01582593657, rel=1e-6)
    assert found.objective == pytest.approx(0.0158046625, rel=1e-6)
    assert found.parameters["R_D"] > 5 * fitted["R_D"]
    assert any("R_D" in each and "flat" in each for each in found.warnings)
    assert found.curve.profiles["R_D"].high is None


@pytest.mark.parametrize(
    ("name", "rows", "objective"),
    [
        ("hot_100b_plus", 770, 0.00069233),
        ("wandb_df_for_fitting_hot", 220, 0.000207505),
        ("wandb_df_for_fitting_slim_chinchilla", 28, 1.30364e-05),
    ],
)
def test_gemstones_objectives(name, rows, objective, published):
    path = published(f"gemstones/{name}.jsonl")
    found = lab.fit(path, huber=1e-4, bootstrap=0)
    assert len(found.points) == rows
    assert found.objective == pytest.approx(objective, rel=2e-5)
    if rows == 770:
        got = found.parameters
        assert round(got["alpha"], 4) == 0.2577 and round(got["beta"], 4) == 0.5895
        assert round(float(np.log(got["E"])), 4) == 0.6656


def test_gemstones_width_and_depth_lower_the_objective(published):
    path = published("gemstones/wandb_df_for_fitting_hot.jsonl")
    plain = lab.fit(path, huber=1e-4, bootstrap=0)
    shaped = lab.fit(path, law="width_depth", bootstrap=0)
    assert shaped.objective < 0.55 * plain.objective


# --- Known laws


def test_a_known_law_is_found_within_its_interval():
    found = lab.fit(made(), bootstrap=200, seed=1)
    for name, (low, high) in found.ranges().items():
        assert low < TRUE[name] < high, name
    a = laws.law("chinchilla").path(TRUE).a
    low, high = found.exponent("a")
    assert low < a < high and high - low < 0.1
    assert found.held_out.worst < 0.02
    loss = found.predict(n=1e9, d=2e10)[0]
    exact = laws.law("chinchilla").predict(TRUE, {"n": 1e9, "d": 2e10})[0]
    assert loss == pytest.approx(exact, rel=0.005)


def test_bootstraps_of_rows_and_of_noise_agree_where_noise_is_normal():
    widths = []
    for kind in ("case", "parametric"):
        found = lab.fit(made(160), loss="log_mse", resample=kind, bootstrap=300)
        low, high = found.exponent("a")
        widths.append(high - low)
    assert widths[0] == pytest.approx(widths[1], rel=0.35)


def test_profile_and_bootstrap_agree_on_squares():
    found = lab.fit(made(160), loss="log_mse", bootstrap=300)
    profile, (low, high) = found.curve.profiles["alpha"], found.ranges()["alpha"]
    assert profile.high - profile.low == pytest.approx(high - low, rel=0.3)
    assert profile.objective.min() == pytest.approx(found.objective, rel=1e-6)


def test_isoflop_finds_the_path_and_says_what_it_left_out():
    table = made(noise=0.0005)
    edge = table.iloc[:10].assign(flops=lambda t: t.flops * 1e4)
    edge = edge.assign(tokens=lambda t: t.flops / 6 / t.params)
    edge = edge.assign(loss=np.linspace(2.2, 2.0, 10))
    found = lab.fit(pd.concat([table, edge]), law="isoflop", bootstrap=100)
    exact = laws.law("chinchilla").path(TRUE)
    assert found.path.a == pytest.approx(exact.a, abs=0.02)
    assert found.path.a + found.path.b == pytest.approx(1, abs=1e-6)
    assert [each.inside for each in found.optima] == [True] * 8 + [False]
    assert any("left out" in each for each in found.warnings)
    assert any("parametric law" in each for each in found.points.notes)
    for each in found.optima[:8]:
        best = exact.n_scale * each.flops**exact.a
        assert each.params == pytest.approx(best, rel=0.15)


def test_the_envelope_of_curves_has_the_path():
    law = laws.law("chinchilla")
    n, d = np.meshgrid(np.geomspace(2e7, 2e9, 25), np.geomspace(1e8, 1e12, 60))
    loss = law.predict(TRUE, {"n": n.ravel(), "d": d.ravel()})
    table = pd.DataFrame({"params": n.ravel(), "tokens": d.ravel(), "loss": loss})
    table = table[(6 * table.params * table.tokens).between(1e18, 1e21)]
    found = lab.fit(table, law="approach1", bootstrap=40)
    assert found.path.a == pytest.approx(law.path(TRUE).a, abs=0.03)


def test_a_sweep_of_rates_gives_the_law_of_its_best_ones():
    rows = []
    for n in np.geomspace(1e8, 1e9, 4):
        for d in np.geomspace(2e9, 1e11, 4):
            best = 1.79 * n**-0.713 * d**0.307
            for rate in best * np.geomspace(0.25, 4, 17):
                loss = 2.5 + 0.05 * np.log(rate / best) ** 2
                rows.append({"N": n, "D": d, "lr": rate, "bs": 64, "smooth loss": loss})
    found = lab.fit(pd.DataFrame(rows), law="learning_rate", bootstrap=60)
    got = found.parameters
    assert got["a"] == pytest.approx(-0.713, abs=1e-3)
    assert got["b"] == pytest.approx(0.307, abs=1e-3)
    assert "of 272 rows are within" in " ".join(found.points.notes)


def test_one_point_that_moves_the_fit_is_named():
    table = made()
    table.loc[37, "loss"] *= 1.3
    found = lab.fit(table, loss="log_mse", bootstrap=0)
    assert found.curve.moved[0].row == 37


# --- Tables that cannot be fitted


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (lambda t: t, {"n_column": "parms"}, "nearest: params"),
        (lambda t: t.drop(columns=["loss"]), {}, "columns: params, tokens, flops"),
        (
            lambda t: t.rename(columns={"loss": "loss_a"}).assign(loss_b=1.0),
            {},
            "which column is the loss. loss_a, loss_b",
        ),
        (lambda t: t.assign(tokens=t.tokens / 1e9), {}, "--scale d=1e9"),
        (lambda t: t.assign(params=t.params / 1e9), {}, "--scale n=1e6 or n=1e9"),
        (lambda t: t.assign(flops=t.flops / 1e18), {}, "--scale c=1e18"),
        (lambda t: t.assign(loss=-t.loss), {}, "not positive"),
        (lambda t: t.head(5), {}, "5 different points for 5 parameters"),
        (lambda t: t.assign(tokens=20 * t.params), {"c_column": None}, "move as one"),
        (lambda t: t.assign(params=1e9), {}, "every row has the same parameters"),
        (lambda t: t, {"fix": ["gamma=1"]}, "parameters are E, A, B, alpha, beta"),
        (lambda t: t, {"where": ["size=3"]}, "no column 'size'"),
        (lambda t: t, {"solver": "projection", "huber": 1e-3}, "minimises squares"),
        (lambda t: t, {"drop_highest": 80}, "there are 80 rows"),
        (lambda t: t, {"hubber": 1e-3}, "nearest: huber"),
        (lambda t: t, {"law": "data_constrained"}, "column of unique tokens"),
        (lambda t: t.tail(10), {"law": "isoflop"}, "needs 2 budgets of 3 sizes"),
        (
            lambda t: t.rename(columns={"params": "tokens", "tokens": "params"}),
            {},
            "have the two columns changed places",
        ),
        (
            lambda t: t.assign(tokens=t.tokens.where(t.index > 2, t.tokens / 1e6)),
            {"c_column": None},
            "in 3 of 80 rows .* rows 0 .*, 1 .*, 2 ",
        ),
        (lambda t: t.assign(loss=1000 * t.loss), {}, "--scale loss=1e-3"),
        (lambda t: t.assign(loss=2.5), {}, "every row has the same loss"),
        (
            lambda t: pd.concat([t.head(5), t.head(5).assign(loss=2.0)]),
            {},
            "5 different points",
        ),
        (
            lambda t: t,
            {"d_column": "tokens", "loss_column": "tokens"},
            "named twice: --d-column NAME and --loss-column NAME",
        ),
        (lambda t: t, {"fix": ["alpha=nan"]}, "not a number"),
        (lambda t: t, {"seed": -1}, "seed -1: at least 0"),
    ],
)
def test_what_cannot_be_fitted_is_said(change, words, said):
    table = change(made())
    if "c_column" in words or "changed" in said:
        table = table.drop(columns="flops")
    with pytest.raises(ValueError, match=said):
        lab.fit(table, **{"bootstrap": 0, **{k: v for k, v in words.items() if v}})


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_what_no_point_tells_is_called_so_before_the_numbers(noise):
    # Models so well trained that no loss is left to lack of tokens.
    random, table = np.random.default_rng(0), made()
    table["tokens"] = 1e13 * random.uniform(1, 3, len(table))
    table["loss"] = 1.8 + 480 * table.params**-0.35
    table["loss"] *= np.exp(noise * random.normal(size=len(table)))
    found = lab.fit(table.drop(columns="flops"), bootstrap=30)
    assert any("not identified" in each for each in found.warnings)
    text = str(found)
    assert text.index("not identified") < text.index("at the minimum")


def test_odd_rows_are_told_and_the_rest_is_fitted():
    table = made()
    table.loc[3, "loss"] = np.nan
    table = pd.concat([table, table.iloc[[10, 11]]])
    found = lab.fit(table, bootstrap=0)
    notes = " ".join(found.points.notes)
    assert "1 rows lack a number, left out: 3" in notes
    assert "2 rows repeat another, kept" in notes and len(found.points) == 81
    dropped = lab.fit(table, bootstrap=0, duplicates="drop", drop_highest=4)
    assert len(dropped.points) == 75


def test_units_and_letters_in_names_and_cells_are_read():
    table = made()
    text = pd.DataFrame(
        {
            "Model Size": [f"{n / 1e6:.6f}M" for n in table.params],
            "tokens_B": table.tokens / 1e9,
            "Final Loss": table.loss,
        }
    )
    plain, read = lab.fit(table, bootstrap=0), lab.fit(text, bootstrap=0)
    assert read.parameters["alpha"] == pytest.approx(
        plain.parameters["alpha"], rel=1e-4
    )
    assert any("tokens_B" in note for note in read.points.notes)


def test_without_tokens_they_come_from_compute():
    found = lab.fit(made().drop(columns="tokens"), bootstrap=0)
    assert found.points.convention["d"] == "C / (6 N)"


def test_json_has_what_programs_read(tmp_path):
    found = lab.fit(made(), bootstrap=40)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    keys = "law parameters a b a_ci b_ci optima convention n_points objective"
    assert set(keys.split()) <= set(data)
    assert data["n_points"] == 80 and data["a_ci"][0] < data["a"] < data["a_ci"][1]
    assert {"flops", "params", "tokens", "loss"} <= set(data["optima"][0])


@pytest.mark.parametrize("law", ["chinchilla", "isoflop", "power_offset"])
def test_figures_and_pages_stand_alone(law):
    import xml.dom.minidom

    words = {"column": {"x": "flops"}} if law == "power_offset" else {}
    found = lab.fit(made(), law=law, bootstrap=40, **words)
    drawn = found.figure()
    assert xml.dom.minidom.parseString(drawn).documentElement.tagName == "svg"
    assert drawn.count("<circle") > 80 and "nan" not in drawn
    page = found.report()
    assert "<svg" in page and "http://www.w3.org/2000/svg" in page
    assert "src=" not in page and "href=" not in page


# --- The command


def test_the_command_writes_what_it_is_asked_for(call, tmp_path):
    made(16).to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "out"
    code, text, err = call(
        f"fit {tmp_path}/runs.csv --law chinchilla --n-column params --d-column tokens "
        "--loss-column loss --c-column flops --drop-highest 1 --huber 1e-3 "
        f"--bootstrap 20 --json {out}/fit.json --figure {out}/fit.svg "
        f"--report {out}/fit.html"
    )
    assert code == 0, err
    data = json.loads((out / "fit.json").read_text())
    assert data["n_points"] == 15 and data["huber"] == 1e-3
    assert data["drop_highest"] == 1 and data["convention"]["c"] == "column 'flops'"
    assert (out / "fit.svg").read_text().startswith("<svg")
    assert "beta" in text and "N* ∝ C^" in (out / "fit.html").read_text()


def test_bad_input_of_the_command_is_one_message_and_no_number(call, tmp_path):
    made(16).to_csv(tmp_path / "runs.csv", index=False)
    code, text, err = call(f"fit {tmp_path}/runs.csv --loss-column los")
    assert code == 2 and not text
    assert "error: no column 'los' for the loss; nearest: loss" in err


@pytest.mark.parametrize(
    ("separator", "decimal"),
    [(",", "."), (";", ","), (";", "."), ("\t", "."), ("|", ".")],
)
def test_tables_are_read_by_their_own_separator(separator, decimal, tmp_path):
    table = made(16).assign(note="a, b; c")
    text = table.to_csv(index=False, sep=separator, decimal=decimal)
    path = tmp_path / "runs.CSV"
    path.write_text("\ufeff" + text, "utf-8")
    found = lab.fit(path, bootstrap=0)
    assert found.points.y == pytest.approx(table.loss)
    assert found.points.columns["n"] == pytest.approx(table.params)


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("params;tokens;loss\n1,971;106.52;2.29\n", 1971.0),
        ("params\ttokens (all, seen)\tloss (nats, held out)\n1971\t2\t3\n", 1971.0),
        ("params,tokens,loss\n1971,2,3,\n", 1971.0),
    ],
)
def test_what_else_a_separator_may_be_is_not_taken_for_one(text, params, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    table, ours = reading.read(path)
    assert not ours and reading.numeric(table["params"], "params") == [params]


@pytest.mark.parametrize("content", [b"", b'params,loss\n"1,2\n', b"\xff\xfen\x00"])
def test_a_file_that_is_no_table_is_named(content, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read {path} as .csv"):
        lab.fit(path)


def test_where_one_file_cannot_be_written_none_is(call, tmp_path):
    made(16).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "file").touch()
    for figure, report in (("file/fit.svg", "fit.html"), ("fit.svg", "taken.html")):
        code, text, err = call(
            f"fit {tmp_path}/runs.csv --bootstrap 0 --json {tmp_path}/fit.json "
            f"--figure {tmp_path}/{figure} --report {tmp_path}/{report}"
        )
        assert code == 2 and not text and "error: " in err
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["file", "runs.csv", "taken.html"]


def test_the_laws_are_listed(call):
    code, text, _ = call("laws")
    assert code == 0 and all(f"{name}: " in text for name in laws.names())


def test_the_commands_flags_are_the_options():
    from scaling_lab.cli.fit import Fitting, Reading
    from scaling_lab.studies.fitting import Options

    flags = [*dataclasses.fields(Reading), *dataclasses.fields(Fitting)]
    options = {field.name: field.default for field in dataclasses.fields(Options)}
    assert {field.name: field.default for field in flags} == options


def records_of(table, folder):
    """The same runs as records, and one that failed."""
    for place, row in enumerate(table.itertuples()):
        asked = {"params": round(row.params), "steps": 1, "seed": 0}
        asked["tokens_per_step"] = round(row.tokens)
        held = {"steps": [1], "bits_per_byte": [row.loss], "final": row.loss}
        each = {"6N": 6.0 * asked["params"], "palm": 7.0 * asked["params"]}
        measured = {"loss": {"final": 9.0}, "held_out": held, "flops_per_token": each}
        append(folder, RunRecord(str(place), "e", "ok", asked, measured=measured))
    append(folder, RunRecord("x", "e", "oom", {"params": 1}, reason="too large"))


def test_a_folder_of_records_is_a_table(tmp_path):
    records_of(made(16, noise=0.0005), tmp_path)
    found = lab.fit(tmp_path, bootstrap=0)
    assert len(found.points) == 16 and "held-out" in found.points.convention["y"]
    assert found.points.convention["c"] == "6 N D"
    assert found.predict(n=1e9, d=2e10)[0] == pytest.approx(2.49, abs=0.1)
    counted = lab.fit(tmp_path, c_column="flops_palm", bootstrap=0)
    ratio = counted.points.columns["c"] / found.points.columns["c"]
    assert ratio == pytest.approx(7 / 6)


def test_a_study_of_records_to_its_figure(call, tmp_path):
    records_of(made(48, noise=0.0005), tmp_path / "runs/iso")
    words = "fit runs/iso --law isoflop --json fit.json --figure isoflop.svg"
    code, _, err = call(words + " --bootstrap 40")
    assert code == 0, err
    data = json.loads((tmp_path / "fit.json").read_text())
    exact = laws.law("chinchilla").path(TRUE)
    assert data["a"] == pytest.approx(exact.a, abs=0.02) and data["n_points"] == 48
    assert len(data["optima"]) == 8 and all(each["inside"] for each in data["optima"])
    assert "IsoFLOP" in (tmp_path / "isoflop.svg").read_text()


def test_a_batch_in_sequences_is_scaled_to_tokens():
    d = np.geomspace(1e9, 1e12, 12)
    table = pd.DataFrame({"D": d, "bs": 0.58 * d**0.571 / 2048})
    found = lab.fit(table, law="batch_size", scale={"batch": 2048}, bootstrap=0)
    assert found.parameters["k"] == pytest.approx(0.58, rel=1e-6)
    assert found.parameters["b"] == pytest.approx(0.571, rel=1e-6)


def test_rates_and_words_are_not_taken_for_counts():
    table = made().rename(columns={"flops": "budget"})
    table = table.assign(tokens_per_second=1.0, data="c4", size="small")
    found = lab.fit(table, bootstrap=0)
    assert found.points.convention["d"] == "column 'tokens'"
    assert found.points.convention["c"] == "column 'budget'"


def test_a_path_that_is_not_there_is_said_to_be_missing(call):
    for path in ("nowhere", "nowhere.csv"):
        code, _, said = call(f"fit {path}")
        assert code == 2 and f"{path} does not exist; give a table or a folder" in said
