"""``scaling-lab train``: one model on one's own text, with progress and a sample."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scaling_lab.cli.grammar import Words, words


def train(
    run: Words,  # pyright: ignore[reportInvalidTypeForm]
    out: Path = Path("runs/train"),
    resume: bool = False,
    save_every: int = 100,
    evaluate_every: int = 100,
    prompt: str = "The ",
    sample: int = 200,
    temperature: float = 0.8,
    json: bool = False,
) -> int:
    """Train a model on text, with evaluation, checkpoints and a sample at the end.

        scaling-lab train --data notes/ --steps 300 --batch 16 --learning-rate 3e-3

    Args:
        run: What to train, on what, where.
        out: Folder of checkpoints/ and records.jsonl.
        resume: Go on from the newest checkpoint in --out.
        save_every: Steps between checkpoints.
        evaluate_every: Steps between evaluations on held-out text.
        prompt: Text that the sample continues.
        sample: Tokens to sample; 0 samples nothing.
        temperature: Of the sample; 0 takes the likeliest token.
        json: Print the record as JSON.
    """
    asked = words(run)
    devices = start_jax(asked["target"], asked["xla_flags"])
    from scaling_lab.config import configure
    from scaling_lab.sweep import LongRun, run_training

    config = configure(**asked, devices=devices)
    plan = LongRun(out, resume, save_every, evaluate_every, prompt, sample, temperature)
    say = Console(stderr=json, highlight=False)
    with _Watch(say, config.steps) as watch:
        trained = run_training(config, plan, watch=watch)
    if json:
        print(trained.record.to_json())
        return 0
    held = (trained.record.measured or {}).get("held_out") or {}
    if held.get("final") is not None:
        say.print(f"held-out: {held['final']:.3f} bits per byte")
    if trained.text:
        say.print("[bold]sample[/]")
        say.print(trained.text, markup=False)
    say.print(
        f"checkpoints: {out / 'checkpoints'}\nrecords:     {out / 'records.jsonl'}"
    )
    return 0


def start_jax(target: str, xla_flags: str = "") -> int:
    """Starts JAX for a target in this process; returns how many devices there are."""
    import jax

    from scaling_lab.compile import cpu
    from scaling_lab.hardware import parse_target
    from scaling_lab.sweep.provenance import flags_in_force

    if xla_flags:  # read when the first device is asked for, below
        os.environ["XLA_FLAGS"] = flags_in_force(xla_flags)

    parsed = parse_target(target)
    if parsed.chip is not None and parsed.chip.name == "cpu":
        cpu.simulate(parsed.devices or 1)
    return jax.device_count()


class _Watch:
    """Shows a long run as it goes."""

    def __init__(self, say: Console, steps: int):
        self.say = say
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=say,
            disable=not say.is_terminal,
        )
        self.steps = steps
        self.task = self.bar.add_task("preparing", total=steps, note="")

    def __enter__(self) -> _Watch:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        if event == "step":
            note = f"loss {facts['loss']:.3f}  {facts['seconds'] * 1e3:.0f} ms"
            number = facts["number"]
            self.bar.update(
                self.task, description="training", completed=number, note=note
            )
            if not self.say.is_terminal and number % max(1, self.steps // 10) == 0:
                self.say.print(f"step {number}: {note}")
        elif event == "evaluated":
            bits = facts["bits_per_byte"]
            self.say.print(f"step {facts['number']}: held-out {bits:.3f} bits per byte")
        elif event == "resuming":
            self.say.print(f"resuming from step {facts['step']}")
        else:
            self.bar.update(self.task, description=event)
