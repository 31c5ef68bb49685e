"""A long run in this process: evaluation, checkpoints, a record, some text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scaling_lab import measure, record
from scaling_lab.checkpoint import Checkpoints
from scaling_lab.config import RunConfig, with_data
from scaling_lab.data import Dataset
from scaling_lab.record import RunRecord
from scaling_lab.sweep.provenance import provenance
from scaling_lab.sweep.run import (
    check_legal,
    check_machine,
    compile_step,
    failure,
    held_out,
    predicted,
    row,
    train_stream,
)
from scaling_lab.train import (
    NotFinite,
    Program,
    TrainState,
    check_room,
    fit,
    generate,
    make_program,
)


@dataclasses.dataclass(frozen=True)
class LongRun:
    """What a run does besides its steps.

    Attributes:
      out: folder of checkpoints and of the record.
      resume: go on from the newest checkpoint there.
      save_every: steps between checkpoints; the last step is always saved.
      evaluate_every: steps between evaluations; the last step is always evaluated.
      prompt: what the sample continues. sample: tokens to add; 0 samples nothing.
      temperature: of the sample; 0 takes the likeliest token.
    """

    out: Path
    resume: bool = False
    save_every: int = 100
    evaluate_every: int = 100
    prompt: str = "The "
    sample: int = 200
    temperature: float = 0.8


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a long run leaves: its program, last state, record and sample."""

    program: Program
    state: TrainState
    record: RunRecord
    text: str


#: Told of every step (``step``), evaluation (``evaluated``) and phase.
Watcher = Callable[[str, dict[str, Any]], None]


def run_training(
    config: RunConfig,
    plan: LongRun,
    *,
    cache_dir: Any = None,
    watch: Watcher = lambda *_: None,
) -> Trained:
    """Trains a config to its last step and leaves a checkpoint, a record and a sample.

    Raises:
      ValueError: an illegal config, or a folder with another run's checkpoints.
      NotFinite: a loss or gradient is no number; a ``crashed`` record was written, and
        the newest checkpoint, if one was due, is sound.
    """
    config, dataset = with_data(config, cache_dir)
    check_legal(config)
    check_machine(config)
    stream = train_stream(config, dataset)
    source = provenance(config.xla_flags, config.seed)
    started = time.perf_counter()
    columns: dict[str, Any] = {}
    status, reason = "ok", None
    check_sample(config, plan, dataset)
    with Checkpoints(plan.out / "checkpoints", config) as checkpoints:
        program, state = _begin(config, plan, checkpoints, watch)
        first = int(state.step)
        log = _Log(program, plan, dataset, checkpoints, watch)
        batches = stream.batches(start=first)
        try:
            compiled, columns["compiled"] = compile_step(
                program, state, stream.batch(0)
            )
            columns["predicted"] = predicted(config)
            steps = (next(batches) for _ in range(config.steps - first))
            state = fit(compiled, state, steps, log, log.wants)
            if checkpoints.latest != int(state.step):
                checkpoints.save(state)
            checkpoints.manager.wait_until_finished()
        except Exception as error:
            status, reason = failure(error)
            short = log.why_short(first)
            if short and not isinstance(error, NotFinite):
                reason = f"{short}: {reason}"
            raise
        finally:
            columns["measured"] = log.measured(config)
            source["seconds"] = time.perf_counter() - started
            if not (reason or log.reached(first)):
                status = "crashed"
            done = row(
                config, source, status, reason or log.why_short(first), **columns
            )
            if first < config.steps:  # resumed at its end, it has its record
                record.append(plan.out, done)
    watch("sampling", {})
    return Trained(program, state, done, sample_text(program, state, dataset, plan))


def _begin(
    config: RunConfig, plan: LongRun, checkpoints: Checkpoints, watch: Watcher
) -> tuple[Program, TrainState]:
    watch("preparing", {})
    program = make_program(config)
    latest = checkpoints.latest
    if latest is None:
        return program, program.init()
    if not plan.resume:
        raise ValueError(
            f"{plan.out} holds a checkpoint of step {latest}; say --resume to go on "
            "from it, or give another --out"
        )
    watch("resuming", {"step": latest})
    return program, checkpoints.restore(program)


class _Log:
    """The hook of `fit`: times, losses, evaluations, checkpoints."""

    def __init__(self, program, plan, dataset, checkpoints, watch):
        self.program, self.plan, self.dataset = program, plan, dataset
        self.checkpoints, self.watch = checkpoints, watch
        self.seconds: list[float] = []
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.routed = measure.Routed()
        self.evaluations: list[tuple[int, float]] = []
        self.last = time.perf_counter()

    def __call__(self, number: int, metrics: Any, state: TrainState) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.steps.append(number)
        self.losses.append(float(metrics["loss"]))
        self.routed.add(number, metrics)
        self.watch(
            "step",
            {"number": number, "loss": self.losses[-1], "seconds": self.seconds[-1]},
        )
        steps = self.program.config.steps
        if number == steps or _due(number, steps, self.plan.evaluate_every):
            self._evaluate(number, state)
        if _due(number, steps, self.plan.save_every):
            self.checkpoints.save(state)
        self.last = time.perf_counter()

    def wants(self, number: int) -> bool:
        """Whether this very step's state is evaluated or saved."""
        every = (self.plan.evaluate_every, self.plan.save_every)
        return any(_due(number, self.program.config.steps, each) for each in every)

    def _evaluate(self, number: int, state: TrainState) -> None:
        found = held_out(self.program, state.params, self.dataset)
        if found is not None and found["final"] is not None:
            self.evaluations.append((number, found["final"]))
            self.watch("evaluated", {"number": number, "bits_per_byte": found["final"]})

    def reached(self, first: int) -> bool:
        return self._last(first) >= self.program.config.steps

    def why_short(self, first: int) -> str | None:
        last, steps = self._last(first), self.program.config.steps
        return None if last >= steps else f"stopped after step {last} of {steps}"

    def _last(self, first: int) -> int:
        return self.steps[-1] if self.steps else first

    def measured(self, config: RunConfig) -> dict[str, Any]:
        clock = measure.spread(self.seconds[measure.WARMUP :])
        return {
            "step_seconds": clock,
            "loss": {
                "steps": self.steps,
                "values": self.losses,
                "final": self.losses[-1] if self.losses else None,
            },
            **self.routed.column(),
            "peak_bytes": measure.device_peak_bytes(),
            "held_out": {
                "steps": [number for number, _ in self.evaluations],
                "bits_per_byte": [bits for _, bits in self.evaluations],
                "final": self.evaluations[-1][1] if self.evaluations else None,
            },
            **measure.throughput(config, clock["median"] if clock else None),
        }


def _due(number: int, steps: int, every: int) -> bool:
    """Whether it is time, before the last step, which sees to itself."""
    return every > 0 and number % every == 0 and number < steps


def check_sample(config: RunConfig, plan: LongRun, dataset: Dataset) -> None:
    """Raises, before any training, unless the sample can be made after it.

    Raises:
      ValueError: an empty prompt, or more positions than the model has.
    """
    if plan.sample < 0:
        raise ValueError(f"--sample {plan.sample}: must not be negative")
    if plan.sample:
        prompt = len(dataset.tokenizer.encode(plan.prompt))
        check_room(config.model, prompt, plan.sample)


def sample_text(
    program: Program, state: TrainState, dataset: Dataset, plan: LongRun
) -> str:
    """The prompt and what the model makes of it."""
    if not plan.sample:
        return ""
    prompt = np.asarray(dataset.tokenizer.encode(plan.prompt), np.int32)
    new = generate(
        program,
        state.params,
        prompt,
        plan.sample,
        temperature=plan.temperature,
        vocabulary=dataset.vocab_size,
    )
    return plan.prompt + dataset.tokenizer.decode(new)
