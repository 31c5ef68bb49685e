"""What the target's compiler says of a run, without the target.

Each compile has a process of its own, since a compiler wants its own environment, may
crash, and may eat memory; its verdict is a record whatever happens. Verdicts are kept
in the cache by config, code, library versions and compiler version, flags included.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from pathlib import Path
from typing import Any

from scaling_lab import record
from scaling_lab.compile.backends import NoCompiler, backend_of, options
from scaling_lab.compile.judge import Verdict, judge
from scaling_lab.config import RunConfig
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.data import DataConfig, store
from scaling_lab.record import RunRecord
from scaling_lab.sweep import driver, worker
from scaling_lab.sweep.calibrated import recalibrated
from scaling_lab.sweep.provenance import environment, provenance
from scaling_lab.sweep.run import Tell, asked, check_legal, failure, predicted, row
from scaling_lab.train import make_program

#: Verdicts that another try would only repeat.
_LASTING = ("ok", "oom")


def compile_run(
    config: RunConfig,
    *,
    module: str | Path | None = None,
    timeout: float | None = None,
    fresh: bool = False,
    cache_dir: Any = None,
    watch: driver.Watcher = lambda *_: None,
    calibration: Calibration | None = None,
) -> RunRecord:
    """The record of a config whose ``compiled`` column its target's compiler filled.

    Nothing is allocated and no accelerator is needed. Several may run side by side,
    from threads or processes.

    Args:
      module: where to write the scheduled HLO text.
      timeout: seconds the compiler may take before the record says ``timeout``.
      fresh: compile even if the verdict is in the cache.
      watch: called as it goes on.
      calibration: efficiencies that the seconds are priced with; see `recalibrated`.

    Returns:
      a record of status ``ok``; ``oom`` with the compiler's figures; ``crashed`` or
      ``timeout`` with a reason.

    Raises:
      ValueError: the config is illegal, or its flags are none.
      NoCompiler: the target's compiler is not installed, or there is none.
    """
    check_legal(config)
    options(config.xla_flags)
    folder = store.cache_folder(cache_dir) / "verdicts"
    kept = folder / key(config)
    known = None if fresh else _read(kept)
    if known is None:
        watch("start", config, {})
        making = kept.with_suffix(".txt.gz")
        making.parent.mkdir(parents=True, exist_ok=True)
        job = worker.Job(cache_dir, making)
        known = _of_the_step(driver.run_alone(config, job, timeout, watch))
        if known.status in _LASTING:
            store.write(kept.with_suffix(".json"), known.to_json())
    else:
        watch("kept", config, {})
        known = dataclasses.replace(known, id=config.id, asked=asked(config))
    wanted = module is not None or calibration is not None
    text = module_text(kept) if wanted and known.status in _LASTING else None
    if module is not None and text is not None:
        store.write(Path(module), text)
    if calibration is not None:
        known = recalibrated(known, config, calibration, text)
    return known


def compile_only(
    config: RunConfig, timeout: float | None, cache_dir: Any, watch: driver.Watcher
) -> RunRecord:
    """A sweep's `driver.Runner` for machines that are not here: nothing is measured."""

    def quiet(event: str, config: RunConfig, facts: dict[str, Any]) -> None:
        if event not in ("start", "kept"):  # the sweep says those itself
            watch(event, config, facts)

    try:
        return compile_run(config, timeout=timeout, cache_dir=cache_dir, watch=quiet)
    except ValueError as error:
        status = "illegal" if not isinstance(error, NoCompiler) else "crashed"
        source = provenance(config.xla_flags, config.seed)
        return row(config, source, status, str(error))


def _of_the_step(found: RunRecord) -> RunRecord:
    """The record, where memory that ran out is the target's and not this machine's."""
    if found.status == "oom" and found.compiled is None:
        reason = f"the compiler ran out of this machine's memory: {found.reason}"
        return dataclasses.replace(found, status="crashed", reason=reason)
    return found


def key(config: RunConfig) -> str:
    """What a verdict is kept under: config, code, libraries, flags, compiler.

    Raises:
      NoCompiler: the target's compiler is not installed, or there is none.
    """
    compiler = backend_of(config.parsed_target()).version()
    # What is learned from, and when it is looked at, is no part of the step.
    step = dataclasses.replace(config, data=DataConfig(), seed=0, evaluate_batches=0)
    whole = [step.id, environment(config.xla_flags), compiler]
    return record.digest(whole)


def compile_here(
    config: RunConfig, module: Path, tell: Tell = lambda *_, **__: None
) -> RunRecord:
    """`compile_run`'s work, in this process.

    Args:
      module: where to write the scheduled HLO text, compressed.
    """
    started = time.perf_counter()
    source = provenance(config.xla_flags, config.seed)
    columns: dict[str, Any] = {}
    try:
        columns["predicted"] = predicted(config)
        verdict = _judge(config, tell)
        columns["compiled"] = verdict.column
        status, reason = verdict.status, verdict.reason
        write_module(module, verdict.module)
    except Exception as error:  # a failure is a row too, whatever it is
        status, reason = failure(error)
    source["seconds"] = time.perf_counter() - started
    return row(config, source, status, reason, **columns)


def _judge(config: RunConfig, tell: Tell) -> Verdict:
    target = config.parsed_target()
    devices = backend_of(target).devices(target)
    program = make_program(config, devices)
    tell("lowering")
    state, batch = program.abstract_arguments()
    lowered = program.step.lower(state, batch)  # pyright: ignore[reportFunctionMemberAccess]
    tell("compiling")
    return judge(lowered, target, program.place.mesh, config.xla_flags, config)


def write_module(path: Path, text: str | None) -> None:
    """A module's text, compressed, whole or not at all; nothing where there is none."""
    path.unlink(missing_ok=True)
    if text is not None:
        making = path.with_suffix(f".{time.monotonic_ns()}")
        making.write_bytes(gzip.compress(text.encode(), 5))
        making.replace(path)


def module_text(kept: Path) -> str | None:
    """The scheduled HLO text of a kept verdict; ``None`` of a program never made."""
    path = kept.with_suffix(".txt.gz")
    return gzip.decompress(path.read_bytes()).decode() if path.exists() else None


def _read(kept: Path) -> RunRecord | None:
    """A verdict of the cache that is whole."""
    noted = store.read(kept.with_suffix(".json"))
    try:
        found = RunRecord.from_json(json.dumps(noted))
    except (ValueError, TypeError):
        return None
    if found.status == "ok" and not kept.with_suffix(".txt.gz").exists():
        return None
    assert found.compiled is not None
    compiled = found.compiled | {"cache_hit": True}
    return dataclasses.replace(found, compiled=compiled)
