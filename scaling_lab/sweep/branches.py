"""Cooldowns that share a trunk: runs of many lengths for little more than the longest.

With warmup-stable-decay (Hu et al. 2024, "MiniCPM", section 4; Hägele et al. 2024,
"Scaling laws and compute-optimal training beyond fixed training durations") runs that
differ in their steps alone are one run until the shorter begins to cool down. So the
longest run is the trunk, and every other branches off it with the state it had there:
what it leaves is, number by number, what it would have left alone.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from scaling_lab import measure, record
from scaling_lab.config import RunConfig, with_data
from scaling_lab.optimizers import cooldown_start
from scaling_lab.record import RunRecord
from scaling_lab.sweep.driver import Summary, Watcher
from scaling_lab.sweep.provenance import environment, provenance
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
from scaling_lab.train import Program, TrainState, make_program


def trunks(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Runs that share a trunk, each group from the shortest to the longest.

    Raises:
      ValueError: a run whose schedule has no trunk, or that begins to cool down before
        it is warm.
    """
    groups: dict[str, list[RunConfig]] = {}
    for config in configs:
        _check(config)
        alike = dataclasses.replace(config, steps=1)
        groups.setdefault(alike.id, []).append(config)
    return [sorted(group, key=lambda c: c.steps) for group in groups.values()]


def steps_saved(group: Sequence[RunConfig]) -> int:
    """Steps that a group's runs would have trained again without their trunk."""
    return sum(cooldown_start(c.optimizer, c.steps) for c in group[:-1])


def run_branches(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    keep_stale: bool = False,
    cache_dir: Any = None,
    watch: Watcher = lambda *_: None,
) -> Summary:
    """Runs of schedule ``wsd`` in this process, those that differ in steps together.

    Every run has a record of its own, as a sweep's has, and a finished one is kept
    under a sweep's rules; its group is trained again where any of it is not.

    Raises:
      ValueError: see `trunks`; nothing has run then.
    """
    path = record.file_of(out)
    configs = [with_data(config, cache_dir)[0] for config in configs]
    known = record.latest(record.read(path)) if path.exists() else {}
    found: dict[str, RunRecord] = {}
    counts = {"ran": 0, "kept": 0, "stale": 0}
    for group in trunks(configs):
        old = [known.get(config.id) for config in group]
        done = [each for each in old if each is not None and each.status == "ok"]
        fresh = [e for e in done if e.environment == environment(group[0].xla_flags)]
        counts["stale"] += len(done) - len(fresh)
        if len(done if keep_stale else fresh) == len(group):
            counts["kept"] += len(group)
            for config in group:
                watch("kept", config, {})
            found |= {each.id: each for each in done}
            continue
        for each in _grown(group, cache_dir, watch):
            record.append(path, each)
            found[each.id] = each
            counts["ran"] += 1
    return Summary(path, tuple(found[config.id] for config in configs), **counts)


def _check(config: RunConfig) -> None:
    optimizer = config.optimizer
    if optimizer.schedule != "wsd":
        raise ValueError(
            f"schedule {optimizer.schedule!r} depends on how long a run is from its "
            "first step, so runs share no trunk; say --schedule wsd"
        )
    start = cooldown_start(optimizer, config.steps)
    if start < max(1, optimizer.warmup):
        raise ValueError(
            f"a run of {config.steps} steps cools down from step {start}, before the "
            f"{optimizer.warmup} of its warmup are over; take fewer --warmup or more "
            "--steps"
        )


def _grown(
    group: Sequence[RunConfig], cache_dir: Any, watch: Watcher
) -> Iterator[RunRecord]:
    """Every run's record, the shortest's first; whatever happens, one for each."""
    left = list(group)
    source = provenance(group[0].xla_flags, group[0].seed)
    source["host"]["device_kind"] = jax.devices()[0].device_kind
    try:
        tree = _Tree(group[-1], cache_dir, watch)
        for config in group:
            started = time.perf_counter()
            columns = tree.branch(config)
            spent = {"seconds": time.perf_counter() - started}
            shared = {"trunk_steps": cooldown_start(config.optimizer, config.steps)}
            found = row(config, {**source, **spent, **shared}, **columns)
            watch("end", config, {"record": found})
            left.remove(config)
            yield found
    except Exception as error:  # a failure is a row too, whatever it is
        for config in left:
            found = row(config, dict(source), *failure(error))
            watch("end", config, {"record": found})
            yield found


class _Tree:
    """The trunk as far as it has grown, and what branches off it."""

    def __init__(self, longest: RunConfig, cache_dir: Any, watch: Watcher):
        for check in (check_legal, check_machine):
            check(longest)
        self.watch, self.longest = watch, longest
        _, self.dataset = with_data(longest, cache_dir)
        program = make_program(longest)
        self.state = program.init()
        first = self._first(longest)
        self.program, self.compiled = compile_step(program, self.state, first)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.routed = measure.Routed()

    def branch(self, config: RunConfig) -> dict[str, Any]:
        """A record's columns: the trunk grown to where a run leaves it, and the rest.

        The trunk's state is its own until the longest run takes it.
        """
        self.watch("start", config, {"stale": False})
        start = cooldown_start(config.optimizer, config.steps)
        self.state, *grown = self._trained(
            self.program, self.state, config, start, self.routed
        )
        self.losses += grown[0]
        self.seconds += grown[1]
        if config is self.longest:
            program, compiled, state = self.program, self.compiled, self.state
        else:
            state = jax.tree.map(jnp.copy, self.state)
            program = make_program(config)
            program, compiled = compile_step(program, state, self._first(config))
        routed = copy.deepcopy(self.routed)
        state, *own = self._trained(program, state, config, config.steps, routed)
        losses, seconds = self.losses + own[0], self.seconds + own[1]
        clock = measure.spread(seconds)  # without the first steps of every part
        measured = {
            "step_seconds": clock,
            "loss": {
                "steps": list(range(1, len(losses) + 1)),
                "values": losses,
                "final": losses[-1],
            },
            **routed.column(),
            "peak_bytes": measure.device_peak_bytes(),
            "held_out": held_out(program, state.params, self.dataset),
            **measure.throughput(config, clock["median"] if clock else None),
        }
        return {
            "predicted": predicted(config),
            "compiled": compiled,
            "measured": measured,
        }

    def _first(self, config: RunConfig) -> Any:
        """The batch that a step is compiled with."""
        return train_stream(config, self.dataset).batch(0)

    def _trained(
        self,
        program: Program,
        state: TrainState,
        config: RunConfig,
        until: int,
        routed: measure.Routed,
    ) -> tuple[TrainState, list[float], list[float]]:
        """The state after so many steps in all; losses and seconds of the new ones."""
        first = int(state.step)
        stream = train_stream(config, self.dataset)
        batches = (stream.batch(number) for number in range(first, until))

        def tell(number: int, loss: float, seconds: float) -> None:
            facts = {"number": number, "loss": loss, "seconds": seconds}
            self.watch("step", config, facts)

        state, measured = measure.train(program, state, batches, tell, first, routed)
        clock = measured["step_seconds"]
        values = measured["loss"]["values"]
        seconds = clock["all"] if clock else []
        return state, values, seconds
