"""How good is our compiled step: memory, cycles, traffic of wires and of kernels?

Run:     python -m experiments.compiled_step_quality [--only 8b tpu-v5p] [--compile]
Takes:   a second from results/compiled_step_quality.jsonl; with --compile two to ten
         minutes a row on 2 CPU cores. Needs the extras tpu-compile and gpu-compile; a
         row whose compiler is missing says so.
Expect:  on 64 v5p chips, Llama 8B under full remat in 7.3 GB of temporaries, 2.31 G
         cycles, 58.7 GB of collectives and 30.8 GB in and out of kernels. MaxText
         (August 2026) takes 9.95 GB, 2.45 G, 59 GB and 35 GB on the same compiler.

Bytes are of one device and step, in units of 1e9; all-reduces count twice, since a ring
moves each of their bytes twice. Cycles are the compiler's own estimates with trip
counts applied, and leave out kernels and collectives, which it does not estimate; a
GPU's compiler estimates none. Step time adds our prices for the rest.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab import record
from scaling_lab.compile import hlo, price
from scaling_lab.compile.backends import NoCompiler
from scaling_lab.hardware import parse_target
from scaling_lab.record import RunRecord

#: Two sequences of 4096 tokens a chip.
CONFIGS = [
    lab.configure(
        "llama",
        size,
        f"fsdp={devices}",
        target,
        batch=2 * devices,
        length=4096,
        remat="full",
        precision="bfloat16",
    )
    for size, targets in {
        "8b": {"tpu-v5p:4x4x4": 64, "tpu-v6e:8x8": 64, "h100:8x8": 64},
        "70b": {"tpu-v5p:4x8x8": 256, "tpu-v6e:16x16": 256, "h100:32x8": 256},
    }.items()
    for target, devices in targets.items()
]
HEADER = (
    "model",
    "target",
    "temporaries",
    "peak",
    "cycles",
    "wires",
    "kernels",
    "step",
)
RESULTS = Path(__file__).parent / "results" / "compiled_step_quality.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=(), help="words of wanted rows")
    parser.add_argument("--compile", action="store_true", help="all of them, anew")
    parser.add_argument("--out", type=Path, default=RESULTS, help="records go here")
    given = parser.parse_args()
    known = record.latest(record.read(given.out)) if given.out.exists() else {}
    say = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(*HEADER, box=None)
    for config in CONFIGS:
        name = f"{config.size} {config.target}"
        if all(word in name for word in given.only):
            if given.compile:
                say.print(f"compiling {name}", style="dim")
            table.add_row(*row(config, known, given.out if given.compile else None))
    say.print(table)
    say.print("GB of one device and step; cycles in 1e9; all-reduces count twice")


def row(
    config: lab.RunConfig, known: Mapping[str, RunRecord], out: Path | None
) -> tuple[str, ...]:
    """One line of the table.

    Args:
      known: records by id.
      out: compile it, and add the record to this file.
    """
    head = (str(config.size), config.target)
    found = known.get(config.id)
    if out is not None:
        try:
            found = compiled(config)
        except NoCompiler as error:
            return (*head, str(error))
        record.append(out, kept.small(found))
    if found is None:
        return (*head, "not compiled yet: --compile")
    column = found.compiled
    if column is None:
        return (*head, found.reason or found.status)
    return (
        *head,
        _giga(column["temporary_bytes"]),
        _giga(column["peak_bytes"]),
        cycles(column, config.target),
        _giga(column["wire_bytes"]),
        _giga(column["kernel_bytes"]),
        "" if column["step_seconds"] is None else f"{column['step_seconds']:.3f} s",
    )


def compiled(config: lab.RunConfig) -> RunRecord:
    """The record of a step that is compiled, unless its verdict is known.

    Raises:
      NoCompiler: the target's compiler is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "module.txt"
        found = lab.compile_run(config, module=module)
        text = module.read_text() if module.exists() else None
    return with_traffic(found, text)


def with_traffic(found: RunRecord, text: str | None) -> RunRecord:
    """The record with what crosses the wires, and what kernels read and write."""
    if found.compiled is None or text is None:
        return found
    wires = sum(
        each["bytes"] * (2 if each["kind"] == "all-reduce" else 1)
        for each in found.compiled["collectives"]
    )
    more = {"wire_bytes": wires, "kernel_bytes": hlo.kernel_bytes(text) or None}
    return dataclasses.replace(found, compiled=found.compiled | more)


def cycles(column: dict, target: str) -> str:
    """The compiler's estimate in units of 1e9, or nothing where it makes none."""
    chip = parse_target(target).chip
    clock = price.physics(chip).clock_hz if chip else None
    seconds = column["scheduled_seconds"]
    return f"{seconds * clock / 1e9:.3f} G" if seconds and clock else ""


def _giga(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f}"


if __name__ == "__main__":
    main()
