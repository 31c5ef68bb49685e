"""The toy Llama learns: real text, a short run, held-out bits per byte."""

import pytest

from scaling_lab.config import configure
from scaling_lab.sweep import LongRun, run_training


@pytest.mark.slow
def test_a_short_run_falls_below_3_2_bits_per_byte(tmp_path):
    config = configure(
        "llama",
        "toy",
        "data=1",
        "cpu:1",
        steps=300,
        batch=16,
        length=128,
        learning_rate=5e-3,
        warmup=20,
        evaluate_batches=16,
    )
    plan = LongRun(tmp_path, save_every=0, evaluate_every=0, prompt="def ", sample=40)
    trained = run_training(config, plan)
    measured = trained.record.measured
    assert measured["loss"]["values"][0] > 5.0  # it knows nothing: log 256 is 5.5
    assert measured["held_out"]["final"] < 3.2
    assert trained.text.startswith("def ") and len(trained.text) > 20
