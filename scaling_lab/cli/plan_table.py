"""How a plan is shown: one line a layout, and what ruled out the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaling_lab.plan import Choice, Plan, words

#: Of layouts that do not fit, so many are named.
NAMED = 3
#: Columns of a table on a pipe: as many as keep a layout in one piece.
PIPED = 400


def say(text: str) -> None:
    """A line beside the answer, so that a pipe gets the answer alone."""
    print(text, file=sys.stderr)


def show(found: Plan, answer: Any) -> int:
    """Prints a plan, or its JSON."""
    from scaling_lab.cli.plan import printed

    if printed([choice.to_json() for choice in found.choices], answer):
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED)
    console.print(_header(found), soft_wrap=True)
    console.print(_table(found))
    console.print(_beneath(found), soft_wrap=True)
    return 0


def _header(found: Plan) -> Text:
    question, ranked = found.question, found.ranked
    shape, target = question.shape, question.target
    count = f"{shape.params:,} parameters"
    if shape.active_params != shape.params:
        count += f", {shape.active_params:,} active"
    return Text(
        f"{shape.name}: {count}\n{target.text}: {target.chips} chips, "
        f"{words.size(question.limit_bytes)} a device may be filled\n"
        f"batch: {question.batch:,} sequences of {question.length:,} = "
        f"{question.tokens:,} tokens, {question.precision}, {question.optimizer}\n"
        f"{len(ranked.candidates):,} candidates priced, {ranked.fits.sum():,} fit\n"
    )


def _table(found: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right in (
        ("", True),
        ("layout", False),
        ("micro", True),
        ("remat", False),
        ("schedule", False),
        ("step", True),
        ("80 %", False),
        ("tokens/s/chip", True),
        ("MFU", True),
        ("memory", True),
        ("", False),
        ("why", False),
    ):
        table.add_column(
            heading,
            justify="right" if right else "left",
            no_wrap=heading not in ("why", "layout"),
            overflow="fold",
        )
    for number, choice in enumerate(found.choices, 1):
        table.add_row(
            str(number),
            _layout(choice),
            f"{choice.microbatches}×{choice.sequences}",
            words.remat(choice.remat),
            "" if choice.schedule == "none" else choice.schedule,
            seconds(choice.step_seconds),
            f"{seconds(choice.step_seconds_low)}–{seconds(choice.step_seconds_high)}",
            f"{choice.tokens_per_second_per_chip:,.0f}",
            f"{100 * choice.mfu_causal:.1f} %",
            words.size(choice.peak_bytes),
            _marks(choice),
            choice.reason,
        )
    return table


def _layout(choice: Any) -> str:
    return choice.layout + ("" if choice.trained else " *")


def _marks(choice: Any) -> str:
    marks = ["tied"] if choice.tied else []
    if choice.confirmed is not None:
        took = choice.compiled_seconds
        said = f"confirmed, {seconds(took)}" if took else "confirmed"
        marks.append(said if choice.confirmed else "refused")
    return ", ".join(marks)


def disagreements(choices: Iterable[Choice]) -> list[str]:
    """A line for every choice whose compiled step lies outside its interval."""
    lines = []
    for choice in choices:
        column = choice.compiled or {}
        took = choice.compiled_seconds
        low, high = choice.step_seconds_low, choice.step_seconds_high
        if not took or low <= took <= high:
            continue
        line = (
            f"{choice.layout} is {seconds(took)} to the compiler, outside its interval"
        )
        verbs = column.get("by_verb") or {}
        if verbs:
            most = max(verbs, key=lambda verb: verbs[verb]["seconds"])
            line += f"; most is {most}, {seconds(verbs[most]['seconds'])}"
        waited = column.get("exposed_seconds")
        if waited:
            line += f"; {seconds(waited)} wait for wires"
        lines.append(line + ".")
    return lines


def _beneath(found: Plan) -> Text:
    lines = ["\ntied: its interval overlaps the first's."]
    if any(choice.confirmed for choice in found.choices):
        lines.append(_confirmed(found))
    if not all(choice.trained for choice in found.choices):
        lines.append(
            "*: predicted only; no run is trained or compiled here with optimizer "
            "state on the host beside stages, experts outside fsdp, or such stages of "
            "these layers."
        )
    lines += disagreements(found.choices)
    for choice in found.unfit[:NAMED]:
        lines.append(f"does not fit: {choice.layout}: {choice.reason}")
    more = len(found.unfit) - NAMED
    if more > 0:
        lines.append(f"… and {more} or more other layouts do not fit either.")
    laws = sorted(found.ranked.candidates.refused.items(), key=lambda item: -item[1])
    lines += [f"illegal: {law} ({count} meshes)" for law, count in laws]
    return Text("\n".join(lines))


def _confirmed(found: Plan) -> str:
    """What confirmed means, with the compiler's flags."""
    columns = [choice.compiled for choice in found.choices if choice.compiled]
    flags, chip = columns[0].get("xla_flags"), found.question.target.chip
    named = dict(chip.flags) if chip is not None else {}
    word = next((name for name in named if named[name] == flags), flags)
    said = f" under --xla-flags {word}" if word else ""
    told = f"confirmed: it fits, to the compiler{said}, and takes so long."
    for choice in found.choices:
        if (stack := (choice.compiled or {}).get("stack", "auto")) != "auto":
            told += f"\n{choice.layout} takes so long with --stack {stack}."
    return told


def budget(found: list[Any], answer: Any) -> int:
    """Prints what a budget of chip-hours buys on every machine."""
    from scaling_lab.cli.plan import printed

    rows = [
        {
            "target": best.target.text,
            "tokens": best.tokens,
            "chip_hours": best.chip_hours,
            "hours": best.hours,
            **best.choice.to_json(),
        }
        for best in found
    ]
    if printed(rows, answer):
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("machine", "layout", "tokens", "chip-hours", "days", "MFU"):
        right = heading not in ("machine", "layout")
        table.add_column(heading, justify="right" if right else "left")
    for best in found:
        table.add_row(
            best.target.text,
            best.choice.layout,
            f"{best.tokens / 1e9:,.1f}e9",
            f"{best.chip_hours:,.0f}",
            f"{best.hours / 24:,.1f}",
            f"{100 * best.choice.mfu_causal:.1f} %",
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPED).print(table)
    return 0


def seconds(value: float) -> str:
    """Seconds for reading."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"
