"""Sweeps of learning rates and batches, from words to the laws they feed."""

import numpy as np
import pytest

import scaling_lab as lab
from scaling_lab import record
from scaling_lab.config import configure
from scaling_lab.sweep import grid


def test_tokens_are_equal_over_batches():
    runs = grid({"layout": "data=1", "batch": [4, 8, 16], "tokens": 2**16})
    assert [run.steps for run in runs] == [64, 32, 16]
    assert len({run.steps * run.tokens_per_step for run in runs}) == 1


@pytest.mark.parametrize("tokens", [3000, 100])
def test_tokens_that_are_no_whole_steps_are_refused(tokens):
    near = {3000: "2048, 4096", 100: "2048, 2048"}[tokens].split(", ")
    with pytest.raises(
        ValueError, match=f"tokens={tokens}: a step has 8 × 256"
    ) as said:
        configure(layout="data=1", tokens=tokens)
    assert near[0] in str(said.value)


def of(n, d, rate, batch, loss):
    """A record of a sweep as `fit` reads it; of a batch in sequences of 64 tokens."""
    asked = {
        "params": n,
        "steps": d // (64 * batch),
        "batch": batch,
        "length": 64,
        "tokens_per_step": 64 * batch,
        "learning_rate": rate,
        "seed": 0,
    }
    return record.RunRecord(
        id=f"{n}/{d}/{rate}/{batch}",
        environment="",
        status="ok",
        asked=asked,
        measured={"held_out": {"final": loss}},
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Runs whose best rate is 2 N^-0.5 D^0.2 and best batch 0.5 D^0.5 tokens."""
    out = tmp_path_factory.mktemp("swept")
    for n in (10**5, 10**6, 10**7):
        for d in (4**14, 4**15, 4**16):
            best = 2 * n**-0.5 * d**0.2
            batch = round(0.5 * d**0.5) // 64
            for off in (-2, -1, 0, 1, 2):
                loss = 2 + 0.1 * abs(off)
                record.append(out, of(n, d, best * 2**off, batch, loss))
                record.append(out, of(n, d, best, round(batch * 4**off), loss))
    return out


def test_a_sweep_of_rates_feeds_its_law(swept):
    found = lab.fit(swept, law="learning_rate", bootstrap=0)
    np.testing.assert_allclose(found.parameters["k"], 2, rtol=0.02)
    np.testing.assert_allclose(found.parameters["a"], -0.5, atol=0.01)
    np.testing.assert_allclose(found.parameters["b"], 0.2, atol=0.01)


def test_a_sweep_of_batches_feeds_its_law_in_tokens(swept):
    found = lab.fit(swept, law="batch_size", bootstrap=0)
    np.testing.assert_allclose(found.parameters["b"], 0.5, atol=0.01)
    np.testing.assert_allclose(found.parameters["k"], 0.5, rtol=0.1)
    assert "tokens_per_step" in found.points.convention["y"]
