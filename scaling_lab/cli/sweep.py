"""``scaling-lab sweep``: a grid of runs, with progress, a table and a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scaling_lab.cli.grammar import Grid, local_devices, words


def sweep(
    grid: Grid,  # pyright: ignore[reportInvalidTypeForm]
    out: Path = Path("runs/sweep"),
    dry_run: bool = False,
    keep_stale: bool = False,
    timeout: float | None = None,
    compile_only: bool = False,
    share_trunk: bool = False,
    json: bool = False,
) -> int:
    """Run every combination of the given values, each in its own process.

    Finished runs are skipped when code, jax and flags are the same, so the command can
    be repeated after any stop. The exit code is 1 if any row failed.

        scaling-lab sweep --target cpu:8 --layout ddp fsdp --batch 8 16 --out runs/a

    For a machine that is not here, its compiler alone can be asked:

        scaling-lab sweep --compile-only --target tpu-v6e:4x4 --size 1b \\
            --layout fsdp=16 fsdp=4,tensor=4 --batch 32 --length 4096 --out runs/b

    Runs of several lengths cost little more than the longest if they share a trunk:

        scaling-lab sweep --share-trunk --schedule wsd --target cpu:1 --layout data=1 \\
            --steps 200 400 800 --out runs/c

    Args:
        grid: What to run; every flag takes several values.
        out: Folder for records.jsonl and report.html.
        dry_run: Say what would run and how long it might take, and stop.
        keep_stale: Keep finished runs of other code, jax or flags.
        timeout: Seconds a run may take.
        compile_only: Compile each for its target, with or without the machine.
        share_trunk: Of schedule wsd: runs that differ in steps alone are one run until
            each cools down; in this process.
        json: Print the records as JSON lines instead of a table.
    """
    configs = make_grid(words(grid))
    if share_trunk and (compile_only or timeout is not None):
        raise ValueError(
            "--share-trunk trains in this process; it takes neither --compile-only nor "
            "--timeout"
        )
    return run_configs(
        configs,
        out,
        dry_run=dry_run,
        keep_stale=keep_stale,
        timeout=timeout,
        how="compile" if compile_only else "branches" if share_trunk else "run",
        json=json,
    )


def make_grid(asked: dict[str, Any]) -> list[Any]:
    """The configs of a grid of words."""
    from scaling_lab.sweep import grid

    return grid(asked, local_devices(asked["target"]))


def run_configs(
    configs: list[Any],
    out: Path,
    *,
    dry_run: bool = False,
    keep_stale: bool = False,
    timeout: float | None = None,
    how: str = "run",
    json: bool = False,
) -> int:
    """Announces, runs, and shows; returns the exit code.

    Args:
      how: ``run`` each in its own process, ``compile`` them only, or grow ``branches``
        of a common trunk in this one.
    """
    from scaling_lab import sweep as sweeps

    say = Console(stderr=json, highlight=False)
    if how == "compile":
        say.print(f"{len(configs)} to compile, a minute or two each where new")
    else:
        seconds = sweeps.estimate_seconds(configs)
        say.print(f"{len(configs)} runs, about {_duration(seconds)} on this machine")
    if dry_run:
        return _foretold(configs, say)
    if how == "branches":
        _start(configs)
    options: dict[str, Any] = {"keep_stale": keep_stale}
    with _Watch(say, configs) as watch:
        if how == "branches":
            summary = sweeps.run_branches(configs, out, watch=watch, **options)
        else:
            run = sweeps.compile_only if how == "compile" else None
            summary = sweeps.sweep(
                configs, out, timeout=timeout, watch=watch, run=run, **options
            )
    return show_summary(summary, say, as_json=json)


def _foretold(configs: list[Any], say: Console) -> int:
    """Names the runs, and of those that cannot be says why; 1 if there are any."""
    from scaling_lab.sweep.run import check_legal

    failed = 0
    for config in configs:
        say.print(f"  {_label(config)}", soft_wrap=True)
        try:
            check_legal(config)
        except ValueError as error:
            failed = 1
            say.print(f"    illegal: {error}", soft_wrap=True, markup=False)
    return failed


def _start(configs: list[Any]) -> None:
    """Starts JAX in this process for runs that share it.

    Raises:
      ValueError: they want different machines or flags.
    """
    from scaling_lab.cli.train import start_jax

    wanted = {(config.target, config.xla_flags) for config in configs}
    if len(wanted) > 1:
        raise ValueError(
            "--share-trunk trains in one process, and a process has one --target and "
            "one set of --xla-flags; call it once for each"
        )
    start_jax(*wanted.pop())


def show_summary(summary: Any, say: Console, *, as_json: bool) -> int:
    """Prints the table and names the page and the records; 1 if any row failed."""
    from scaling_lab import studies

    if as_json:
        for row in summary.records:
            print(row.to_json())
    else:
        print(studies.table(studies.frame(list(summary.records))))
    page = studies.report(summary.path.parent)
    say.print(
        f"\n{summary.ran} ran, {summary.kept} kept from before, {summary.stale} were "
        f"stale, {len(summary.failed)} failed"
    )
    say.print(f"records: {summary.path}\npage:    {page}", soft_wrap=True)
    return 1 if summary.failed else 0


class _Watch:
    """Shows a sweep as it goes: a bar of runs and a bar of steps."""

    def __init__(self, say: Console, configs: list[Any]):
        self.live = say.is_terminal
        self.say = say
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=say,
            disable=not self.live,
        )
        self.runs = self.bars.add_task("runs", total=len(configs), note="")
        self.steps = self.bars.add_task("", total=1, note="")

    def __enter__(self) -> _Watch:
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.remove_task(self.steps)
        self.bars.stop()

    def __call__(self, event: str, config: Any, facts: dict[str, Any]) -> None:
        label = config.layout.name
        if event == "start":
            note = "stale, again" if facts["stale"] else "starting"
            self.bars.reset(
                self.steps, description=label, total=config.steps, note=note
            )
        elif event == "step":
            note = f"loss {facts['loss']:.3f}"
            self.bars.update(self.steps, completed=facts["number"], note=note)
        elif event == "end":
            self.bars.advance(self.runs)
            self._line(_label(config), facts["record"])
        elif event == "kept":
            self.bars.advance(self.runs)
            self.say.print(f"  kept     {_label(config)}")
        else:
            self.bars.update(self.steps, note=event)

    def _line(self, label: str, row: Any) -> None:
        if row.status == "ok":
            compiled = row.compiled["compile_seconds"]
            hit = " (cached)" if row.compiled["cache_hit"] else ""
            spent = row.provenance["seconds"]
            self.say.print(
                f"  ok       {label}  {_found(row)}, compiled in {compiled:.1f} s"
                f"{hit}, {spent:.0f} s in all",
                soft_wrap=True,
            )
        else:
            self.say.print(f"  [red]{row.status:8}[/] {label}", soft_wrap=True)
            self.say.print(f"           {row.reason.splitlines()[0]}", markup=False)


def _found(row: Any) -> str:
    """The loss of a run; of a step that was only compiled its memory."""
    if row.measured is not None:
        return f"loss {row.measured['loss']['final']:.4f}"
    return f"peak {row.compiled['peak_bytes'] / 2**30:.2f} GiB a device"


def _label(config: Any) -> str:
    return (
        f"{config.family} {config.size}  {config.layout.name}  batch {config.batch} × "
        f"{config.length}, seed {config.seed}, remat {config.remat}, {config.precision}"
        f"{_changed(config)}"
    )


def _changed(config: Any) -> str:
    """What else tells a run from others of its size, where it is not the default."""
    from scaling_lab import models
    from scaling_lab.optimizers import OptimizerConfig

    named = models.family_of(config.model).SIZES.get(config.size, config.model)
    rate, mask = config.optimizer.learning_rate, models.sight(config.model).text
    routing = models.routing(config.model)
    told = [
        (config.model.D != named.D, f"width {config.model.D}"),
        (config.model.L != named.L, f"{config.model.L} layers"),
        (config.mup is not None, f"muP of {getattr(config.mup, 'D', None)}"),
        (rate != OptimizerConfig.learning_rate, f"rate {rate:g}"),
        (mask != "causal", f"mask {mask}"),
        (routing != models.routing(named), f"routing {routing}"),
        (config.steps != type(config).steps, f"{config.steps} steps"),
    ]
    return "".join(f", {words}" for is_so, words in told if is_so)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def main_of(configs: list[Any], out: str) -> None:
    """The ``main`` of an experiment: its configs as a sweep, into ``runs/<name>``."""
    words_ = sys.argv[1:]
    if {"-h", "--help"} & set(words_):
        print(sys.modules["__main__"].__doc__)
        raise SystemExit(0)
    unknown = [word for word in words_ if word not in ("--dry-run", "--json")]
    if unknown:
        print(f"unknown option {unknown[0]}; there are --dry-run, --json")
        raise SystemExit(2)
    code = run_configs(
        configs,
        Path(out),
        dry_run="--dry-run" in words_,
        json="--json" in words_,
    )
    raise SystemExit(code)
