"""The isoFLOP study, whole, at budgets that take seconds."""

import dataclasses
import json
import types

import numpy as np
import pytest

import scaling_lab as lab
from experiments import _foretelling, _isoflop, isoflop_small, mup_transfer
from scaling_lab import record
from scaling_lab.sweep import run_here

pytestmark = pytest.mark.usefixtures("quick_compiles")

#: Three budgets, of which two foretell the third.
GRID = dict.fromkeys((1e9, 2e9), ((32, 64, 96), 64)) | {4e9: ((64,), 64)}


@pytest.fixture(scope="module")
def short(text, cache):
    """The study's own configs, of fewer tokens a step and on a small text."""
    whole = isoflop_small.config_of

    def config_of(*words):
        config = whole(*words)
        data = dataclasses.replace(
            config.data, source=(str(text),), held_out_fraction=0.2
        )
        model = dataclasses.replace(config.model, L=1)
        small = {"batch": 2, "accumulate": 1, "length": 16}
        run = dataclasses.replace(config, model=model, data=data, **small)
        each = _isoflop.flops_of(run) / run.steps
        steps = max(2, round(words[0] / each))
        return dataclasses.replace(run, steps=steps, evaluate_batches=1)

    def run(config, timeout, cache_dir, watch):
        def tell(event, **facts):
            watch(event, config, facts)

        return run_here(config, cache_dir=cache, tell=tell)

    return types.SimpleNamespace(config_of=config_of, run=run)


@pytest.fixture
def study(short, monkeypatch, cache):
    monkeypatch.setattr(isoflop_small, "config_of", short.config_of)
    monkeypatch.setenv("SCALING_LAB_CACHE", str(cache))
    monkeypatch.setattr(isoflop_small, "SEEDS", (0,))

    def run(out, budgets, **options):
        return isoflop_small.study(GRID, out, budgets, run=short.run, **options)

    return run


# --- Its plan


def test_every_budget_is_spent_and_no_more():
    for flops, (widths, again) in isoflop_small.GRID.items():
        assert len(widths) >= 5 and again in widths
        for width in widths:
            config = isoflop_small.config_of(flops, width, 0)
            assert _isoflop.flops_of(config) == pytest.approx(flops, rel=0.01)
            assert config.mup.D == isoflop_small.BASE


def test_three_seeds_of_one_size_of_each_budget():
    configs = isoflop_small.CONFIGS
    assert len(configs) == 28
    seeds = {}
    for config in configs:
        key = (round(np.log10(_isoflop.flops_of(config)), 1), config.model.D)
        seeds.setdefault(key, set()).add(config.seed)
    assert sorted(len(each) for each in seeds.values()) == [1] * 16 + [3] * 4


# --- Its numbers


def runs(budgets, sizes=(1e5, 2e5, 4e5, 8e5, 1.6e6), noise=0.0):
    """Records of a law that is known: 1 + 50 / N^.4 + 60 / D^.4."""
    random = np.random.default_rng(0)
    for flops in budgets:
        for n in sizes:
            d = flops / (6 * n)
            loss = 1 + 50 / n**0.4 + 60 / d**0.4 + noise * random.standard_normal()
            asked = {
                "params": n,
                "steps": 1,
                "tokens_per_step": d,
                "seed": 0,
                "config": {"model": {"D": 1}},
            }
            yield record.RunRecord(
                id=f"{flops}{n}",
                environment="",
                status="ok",
                asked=asked,
                measured={"held_out": {"final": loss}},
                provenance={"seconds": 1.0},
            )


def test_what_is_foretold_comes():
    flops = 1e14
    told = _foretelling.foretell(list(runs((3e12, 1e13, 3e13))), flops)
    n = np.geomspace(1e5, 1e7, 4000)
    curve = 1 + 50 / n**0.4 + 60 / (flops / (6 * n)) ** 0.4
    assert told["loss"] == pytest.approx(curve.min(), abs=2e-3)
    assert told["loss_frontier"] == pytest.approx(curve.min(), abs=5e-3)
    assert told["params"] == pytest.approx(n[curve.argmin()], rel=0.25)
    assert told["seed_spread"] is None and told["runs"] == 15


def test_a_line_that_does_not_bend_foretells_nothing():
    bent = [
        types.SimpleNamespace(flops=c, loss=x)
        for c, x in ((1, 3.0), (10, 2.9), (100, 2.5))
    ]
    assert _foretelling._floored(bent, 1000.0) is None


def test_the_rest_of_the_time_is_told():
    configs = [isoflop_small.config_of(3e12, width, 0) for width in (64, 96)]
    said = []
    clock = _isoflop.Clock(configs, said.append)
    clock.start -= 60.0
    assert clock.left() == "remaining time not known yet"
    clock("start", configs[0], {})
    clock("step", configs[0], {"number": configs[0].steps})
    assert clock.left().startswith("about 1 min left")
    clock("kept", configs[1], {})
    assert clock.left().startswith("about 0 min left")


# --- Whole


@pytest.mark.slow
def test_the_study_runs_resumes_and_foretells_first(study, tmp_path, monkeypatch):
    def foretell(rows, flops):  # what it says of runs that are a valley is tested above
        done = record.read(record.file_of(tmp_path))
        assert len(rows) == len(done) == 6  # no run of the top budget was there
        return {"budget": flops, "loss": 2.0, "params": 1e5}

    monkeypatch.setattr(_foretelling, "foretell", foretell)
    lower = sorted(GRID)[:2]
    first = study(tmp_path, lower, most=2)
    assert len(first) == 2 and not (tmp_path / isoflop_small.PREDICTION).exists()
    done = study(tmp_path, lower)
    assert [row.status for row in done] == ["ok"] * 6
    assert len(record.read(record.file_of(tmp_path))) == 6  # none ran twice
    told = json.loads((tmp_path / isoflop_small.PREDICTION).read_text())
    assert told["budget"] == max(GRID)
    before = (tmp_path / isoflop_small.PREDICTION).read_text()
    whole = study(tmp_path, [max(GRID)])
    assert len(whole) == 7 and {row.status for row in whole} == {"ok"}
    assert (tmp_path / isoflop_small.PREDICTION).read_text() == before
    text = isoflop_small.text(whole, tmp_path)
    assert "foretold of" in text
    small = [_isoflop.small(row) for row in whole]
    _isoflop.keep(whole, tmp_path / "kept" / record.FILE_NAME)
    assert len(small[-1].to_json()) < 6000
    table = lab.records(tmp_path / "kept")
    assert len(table) == 7


# --- Rates over widths


def test_the_best_rate_of_each_width_is_told():
    rows = []
    for config in mup_transfer.CONFIGS:
        width, rate = config.model.D, config.optimizer.learning_rate
        best = 4e-3 if config.mup else 4e-3 * 64 / width
        asked = {"learning_rate": rate, "config": config.to_json()}
        loss = 3 - width / 1000 + abs(np.log2(rate / best))
        measured = {"held_out": {"final": loss}}
        rows.append(record.RunRecord(config.id, "", "ok", asked, measured=measured))
    table = mup_transfer.answer(rows)
    found = {(row["parametrisation"], row["width"]): row["best_rate"] for row in table}
    assert [found["mup", width] for width in (64, 128, 256)] == [4e-3] * 3
    assert [found["standard", width] for width in (64, 128, 256)] == [4e-3, 2e-3, 1e-3]
    lines = mup_transfer.text(table).splitlines()
    assert len(lines) == 7 and all(line.count("*") == 1 for line in lines[1:])
