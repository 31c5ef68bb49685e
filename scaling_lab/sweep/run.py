"""One run in this process: asked, compiled, measured, as one record."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import jax

from scaling_lab import compile as compiler
from scaling_lab import cost, measure, models
from scaling_lab.config import RunConfig, check_remat, validate, with_data
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.data import Dataset
from scaling_lab.hardware import chip_for
from scaling_lab.layouts import IllegalLayout
from scaling_lab.record import RunRecord
from scaling_lab.sweep.provenance import environment, flags_in_force, provenance
from scaling_lab.train import NotFinite, Program, bits_per_byte, make_program

#: Told what a run is doing: an event's name and its facts.
Tell = Callable[..., None]


def run_here(
    config: RunConfig, *, cache_dir: Any = None, tell: Tell = lambda *_, **__: None
) -> RunRecord:
    """Runs a config in this process and returns its record, whatever happens.

    Failures become records: ``illegal`` before anything is traced, ``oom``, ``crashed``
    with step and tensor.
    """
    started = time.perf_counter()
    source = provenance(config.xla_flags, config.seed)
    columns: dict[str, Any] = {}
    status, reason = "ok", None
    try:
        config, dataset = with_data(config, cache_dir)
        check_legal(config)
        check_machine(config)
        _fill(columns, config, dataset, tell)
    except Exception as error:  # a failure is a row too, whatever it is
        status, reason = failure(error)
    source["seconds"] = time.perf_counter() - started
    source["host"]["device_kind"] = jax.devices()[0].device_kind
    return row(config, source, status, reason, **columns)


def row(
    config: RunConfig,
    source: dict[str, Any],
    status: str = "ok",
    reason: str | None = None,
    **columns: Any,
) -> RunRecord:
    """A config's record: what was asked, how it ended, and where it comes from."""
    return RunRecord(
        id=config.id,
        environment=environment(config.xla_flags),
        status=status,
        reason=reason,
        asked=asked(config),
        provenance=source,
        **columns,
    )


def failure(error: Exception) -> tuple[str, str]:
    """The status and reason of a run that an exception ended."""
    if isinstance(error, IllegalLayout):
        return "illegal", str(error)
    exhausted = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    reason = f"{type(error).__name__}: {str(error)[:2000]}"
    if not isinstance(error, NotFinite | ValueError | OSError | ImportError):
        reason += "\n" + "".join(traceback.format_tb(error.__traceback__)[-3:])
    return "oom" if exhausted else "crashed", reason


def check_legal(config: RunConfig) -> None:
    """Every check that needs no compiler, remat's verb names included.

    Raises:
      ValueError: what is wrong and what would do.
    """
    validate(config)
    check_remat(config.remat, [entry.name for entry in cost.record(config)])


def check_machine(config: RunConfig) -> None:
    """Raises unless the target is the machine this process has.

    Raises:
      ValueError: it is another; a number measured here would carry its name.
    """
    if flags_in_force(config.xla_flags) != os.environ.get("XLA_FLAGS", "").strip():
        raise ValueError(
            f"xla_flags {config.xla_flags!r} are not in force: they are read when JAX "
            f"starts; set XLA_FLAGS before, or run it in a sweep"
        )
    target, kind = config.parsed_target(), jax.devices()[0].device_kind
    here, wanted = chip_for(kind) == target.chip, target.devices or 1
    if target.simulated and (not here or wanted > jax.device_count()):
        raise ValueError(
            f"target {config.target} wants {wanted} simulated device(s) and this "
            f"process has {jax.device_count()} of kind {kind!r}: that is settled when "
            f"JAX starts; start Python with JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="
            f"{wanted}, or give the run a process of its own with run_sweep"
        )
    if target.chip is not None and not here:
        raise ValueError(
            f"target {config.target} is not this machine, which has "
            f"{jax.device_count()} device(s) of kind {kind!r}; run here with --target "
            f"local or --target cpu:8, or ask about that machine with "
            f"`scaling-lab explain --target {config.target}` or `scaling-lab compile`"
        )


def asked(config: RunConfig) -> dict[str, Any]:
    """The record's ``asked`` column: the config, and what people call its parts."""
    target = config.parsed_target()
    routing = models.routing(config.model)
    return {
        "family": config.family,
        "size": config.size,
        "mask": models.sight(config.model).text,
        **({"routing": routing} if routing else {}),
        "layout": config.layout.name,
        "mesh": dict(config.layout.mesh),
        "target": config.target,
        "simulated": target.simulated and config.layout.devices > 1,
        "devices": config.layout.devices,
        "batch": config.batch,
        "length": config.length,
        "steps": config.steps,
        "seed": config.seed,
        "remat": config.remat,
        "precision": config.precision,
        "accumulate": config.accumulate,
        "optimizer": config.optimizer.name,
        "learning_rate": config.optimizer.learning_rate,
        **_counted(config),
        "tokens_per_step": config.tokens_per_step,
        "data": {
            "source": list(config.data.source),
            "digest": config.data.digest,
            "tokenizer": config.data.tokenizer,
            "tokenizer_digest": config.data.tokenizer_digest,
        },
        "config": config.to_json(),
    }


def _counted(config: RunConfig) -> dict[str, int | None]:
    """Parameter counts; ``None`` of a model that cannot be."""
    try:
        return {
            "params": cost.parameters(config),
            "params_without_embedding": cost.multiplied_parameters(config),
        }
    except Exception:  # an illegal config has a row too
        return {"params": None, "params_without_embedding": None}


def predicted(config: RunConfig) -> dict[str, Any]:
    """The record's ``predicted`` column: bytes, what must be sent, and the step's time.

    Times are ``None`` where no vendor claims a peak for the target's chip, as of a CPU.
    """
    explanation = cost.explain(config)
    held, moved = explanation.bytes_by(), explanation.collectives()
    return {
        "state_bytes": held["parameter"] + held["optimizer"],
        "collective_bytes": sum(row["bytes"] for row in moved),
        "bytes_per_device": held,
        "collectives": moved,
        **_priced(config),
    }


def _priced(config: RunConfig) -> dict[str, Any]:
    """Seconds of a step by cause with their interval, and bytes at the peak."""
    chip = measure.target_chip(config)
    if chip is None or not chip.flops_per_second:
        return {"step_seconds": None, "hbm_bytes": None}
    return predict(points_of([config], chip)).row(0)


def _fill(
    columns: dict[str, Any], config: RunConfig, dataset: Dataset, tell: Tell
) -> None:
    """Fills the columns as far as the run gets, so a crash keeps what came before."""
    stream = train_stream(config, dataset)
    columns["predicted"] = predicted(config)
    tell("compiling")
    program = make_program(config)
    state = program.init()
    program, columns["compiled"] = compile_step(program, state, stream.batch(0))
    tell("compiled", seconds=columns["compiled"]["compile_seconds"])

    def on_step(number: int, loss: float, seconds: float) -> None:
        tell("step", number=number, loss=loss, seconds=seconds)

    batches = (stream.batch(i) for i in range(config.steps))
    state, measured = measure.train(program, state, batches, on_step)
    clock = measured["step_seconds"]
    measured |= measure.throughput(config, clock["median"] if clock else None)
    tell("evaluating")
    measured["held_out"] = held_out(program, state.params, dataset)
    columns["measured"] = measured


def train_stream(config: RunConfig, dataset: Dataset) -> Any:
    """The batches of a run, after checking that it will have some to evaluate on.

    Raises:
      ValueError: too little text, which a run should not learn at its end.
    """
    if config.evaluate_batches and config.data.held_out_fraction:
        try:
            dataset.stream("held_out", config.batch, config.length, 0)
        except ValueError as error:
            raise ValueError(f"{error}, or say --evaluate-batches 0") from None
    return dataset.stream("train", config.batch, config.length, config.seed)


def compile_step(
    program: Program, state: Any, batch: Any
) -> tuple[Program, dict[str, Any]]:
    """The program with its step compiled, and the record's ``compiled`` column."""
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    placed = program.put(batch)
    lowered = program.step.lower(state, placed)  # pyright: ignore[reportFunctionMemberAccess]
    jax.monitoring.register_event_listener(listen)
    start = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    jax.monitoring.unregister_event_listener(listen)
    mesh = dict(program.place.mesh.shape) if program.place.mesh is not None else {}
    column = compiler.describe(executable, mesh, seconds, bool(hits))
    return program._replace(step=executable), column


def held_out(
    program: Program, params: Any, dataset: Dataset, batches: int | None = None
) -> dict[str, Any] | None:
    """Held-out bits per byte, on the same batches whatever the run's seed."""
    config = program.config
    count = config.evaluate_batches if batches is None else batches
    if not count or not config.data.held_out_fraction:
        return None
    stream = dataset.stream("held_out", config.batch, config.length, 0)
    some: Iterable[Any] = (stream.batch(i) for i in range(count))
    bits = bits_per_byte(program, params, some, stream.bytes_per_token_V)
    return {
        "batches": count,
        "steps": [config.steps],
        "bits_per_byte": [bits],
        "final": bits,
    }
