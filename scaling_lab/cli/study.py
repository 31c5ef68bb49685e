"""``scaling-lab study``: a scaling law joined with a machine."""

from __future__ import annotations

import dataclasses
import json as json_
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Machine:
    """What it runs on, and for how long."""

    target: str = "h100:8x8"
    """Machine: tpu-v5p:4x4x4, h100:8x8 (nodes x GPUs); or a chip, with --chips."""
    chips: int | None = None
    """So many of the chip, instead of a topology."""
    days: float = 30.0
    """Of the whole machine."""
    batch_tokens: str = "4M"
    """Global batch in tokens; K, M, G are powers of 1024."""
    length: int = 8192
    """Tokens per sequence."""
    precision: str = "bfloat16"
    """Of matrix products: bfloat16, float8, int8, mxfp8, nvfp4 or float32."""
    optimizer: str = "adamw"
    """adamw, lion, muon or adafactor."""
    node_gbps: float | None = None
    """Network of one node, gigabits per second one way, instead of the chip's own."""
    calibration: Path | None = None
    """Efficiencies of `scaling-lab calibrate` instead of the fitted ones."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Which sizes are tried."""

    family: str = "llama"
    """Model family; `scaling-lab models` lists them."""
    like: str = "8b"
    """Size whose proportions the others have, wider and deeper or less."""
    params: tuple[float, float] = (3e8, 2e11)
    """Fewest and most parameters."""
    sizes: tuple[str, ...] = ()
    """Only these published sizes of the family, as 1b 8b 70b."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What is served, and what things cost."""

    serve_tokens: str | None = None
    """Tokens to be served within the same days, as 2T (powers of 1024)."""
    serve_efficiency: float = 1.0
    """Share of training's FLOP/s that serving reaches."""
    price: float | None = None
    """Of a chip for an hour, in whatever money the answer is to be in."""
    watts: float | None = None
    """Of a chip with its share of hosts, network and cooling."""
    loss: tuple[float, ...] = ()
    """Losses to tell the cost of, at every size. Default: the best one's."""


def study(
    what: Annotated[Literal["plan"], tyro.conf.Positional],
    machine: Annotated[Machine, tyro.conf.arg(name="")],
    sizes: Annotated[Sizes, tyro.conf.arg(name="")],
    costs: Annotated[Costs, tyro.conf.arg(name="")],
    law: str = "chinchilla:besiroglu_2024",
    json: Path | None = None,
) -> int:
    """Plan a training by a scaling law: the best size, tokens and layout for a machine.

    A law says what loss a size reaches on so many tokens; the planner says how many
    tokens this machine brings to that size, by the best layout of each. Together:

        scaling-lab fit runs.csv --law chinchilla --bootstrap 400 --json fit.json
        scaling-lab study plan --law fit.json --target h100 --chips 64 --days 30 \\
            --price 2.5 --watts 1200
        scaling-lab study plan --law chinchilla:besiroglu_2024 --target tpu-v5p:8x8x8 \\
            --days 10 --serve-tokens 2T --json plan.json

    Intervals hold four of five draws of the law (its bootstrap) and of the predicted
    step time together; `best` is the share of draws that a size wins. Losses are the
    law's: of its text and its tokenizer.

    Args:
        what: plan, the best size, tokens and layout.
        machine: What it runs on.
        sizes: Which sizes are tried.
        costs: What is served, and what things cost.
        law: A file of `scaling-lab fit --json`, or published constants by name;
            `scaling-lab laws` lists them.
        json: Write everything to this file; - prints it instead of the tables.
    """
    from scaling_lab.data import store

    del what
    say = Console(stderr=True, highlight=False)
    found = _planned(law, machine, sizes, costs, say)
    losses = costs.loss or (found.sizes[0].loss,)
    text = json_.dumps(found.to_json(losses), indent=1, allow_nan=False)
    if str(json) == "-":
        print(text)
        return 0
    show(found, losses)
    if json is not None:
        store.write(json, text + "\n")
        say.print(f"written: {json}", markup=False, soft_wrap=True)
    return 0


def _planned(
    law: str, machine: Machine, sizes: Sizes, costs: Costs, say: Console
) -> Any:
    """The answer; what is planned is said as it goes."""
    from scaling_lab.plan import laws, question
    from scaling_lab.plan import study as studying

    curve = laws.read(law)
    spending = studying.Spending(
        machine.days,
        question.tokens(costs.serve_tokens) if costs.serve_tokens else 0.0,
        costs.serve_efficiency,
        costs.price,
        costs.watts,
    )
    planned = studying.fastest(
        questions_of(machine, sizes), lambda name: say.print(f"  planning {name}")
    )
    return studying.study(planned, curve, spending)


def questions_of(machine: Machine, sizes: Sizes) -> list[Any]:
    """A question for every size, on the machine that was asked for."""
    from scaling_lab import plan as room
    from scaling_lab.plan import ladder

    shapes = (
        ladder.named(sizes.family, sizes.sizes)
        if sizes.sizes
        else ladder.ladder(sizes.family, sizes.like, *sizes.params)
    )
    words = {
        name: getattr(machine, name)
        for name in ("batch_tokens", "length", "precision", "optimizer", "node_gbps")
    }
    target = room.sizes.machine_of(machine.target, machine.chips)
    size = sizes.sizes[0] if sizes.sizes else sizes.like
    first = room.ask(
        sizes.family, size, target=target, calibration=machine.calibration, **words
    )
    return [
        dataclasses.replace(first, shape=dataclasses.replace(shape, length=None))
        for shape in shapes
    ]


def show(found: Any, losses: tuple[float, ...]) -> None:
    """Prints the answer: sizes, the cost curve, what is doubtful."""
    from scaling_lab.studies.units import count

    say = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    spending, best = found.spending, found.sizes[0]
    say.print(
        f"{found.question.target.text}, {found.chips} chips, {spending.days:g} days; "
        f"law {found.curve.name} ({found.curve.source})",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("size", "parameters", "tokens", "per param", "loss", "80 %", "best"):
        table.add_column(name, justify="left" if name == "size" else "right")
    for name in ("step s", "MFU", "layout"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for each in found.sizes:
        table.add_row(
            each.name,
            count(each.params),
            count(each.tokens),
            f"{each.tokens / each.params:.1f}",
            f"{each.loss:.4f}",
            f"{each.loss_low:.4f}–{each.loss_high:.4f}",
            f"{100 * each.best_share:.0f} %",
            f"{each.choice.step_seconds:.3g}",
            f"{100 * each.choice.mfu_causal:.0f} %",
            each.choice.layout + ("" if each.choice.trained else " *"),
        )
    say.print(table)
    if not all(each.choice.trained for each in found.sizes):
        say.print("* priced as others do it; no train step here runs this layout")
    for loss in losses:
        _show_costs(say, found, loss)
    for line in found.unfit:
        say.print(f"left out: {line}", soft_wrap=True, markup=False)
    for note in found.notes:
        say.print(f"note: {note}", soft_wrap=True, markup=False)
    say.print(
        f"best: {best.name}, {count(best.tokens)} tokens, {best.choice.layout}: loss "
        f"{best.loss:.4f}",
        soft_wrap=True,
    )


def _show_costs(say: Console, found: Any, loss: float) -> None:
    from scaling_lab.studies.units import count

    say.print(f"\nto reach a loss of {loss:.4f}:")
    table = Table(box=None, pad_edge=False)
    for name in ("size", "tokens", "days", "chip-hours", "MWh", "money"):
        table.add_column(name, justify="left" if name == "size" else "right")
    for row in found.iso_loss([loss]):
        kwh, money = row["energy_kwh"], row["money"]
        table.add_row(
            row["name"],
            count(row["tokens"]),
            f"{row['days']:.3g}",
            f"{row['chip_hours']:,.0f}",
            "–" if kwh is None else f"{kwh / 1000:,.3g}",
            "–" if money is None else f"{money:,.0f}",
        )
    if not table.row_count:
        say.print("none of these sizes reaches it on any number of tokens")
        return
    say.print(table)
