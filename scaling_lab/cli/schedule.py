"""``scaling-lab schedule``: a pipeline schedule as a picture, with what it costs."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console


def schedule(
    kind: str = "gpipe",
    stages: int = 4,
    microbatches: int = 8,
    virtual: int = 1,
    layers: int | None = None,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    send: float = 0.0,
    figure: Path | None = None,
    json: bool = False,
) -> int:
    """Draw a pipeline schedule: who does what when, what waits, what is held.

        scaling-lab schedule --kind 1f1b --stages 4 --microbatches 8
        scaling-lab schedule --kind interleaved --virtual 2 --figure interleaved.svg

    Every stage does its tasks in order, each as soon as what it needs has arrived. F
    is a forward pass of one microbatch, B its backward pass, which zb_h1 takes apart
    into I (gradient of the input, which another stage waits for) and W (of weights).
    Layouts train with gpipe (stage=4), interleaved (stage=4+interleaved=2), eager_1f1b
    (stage=4+1f1b) and eager_zb_h1 (stage=4+zero_bubble).

    Args:
        kind: gpipe, interleaved, 1f1b, eager_1f1b, zb_h1 or eager_zb_h1.
        stages: Stages of the pipeline.
        microbatches: Microbatches of a step.
        virtual: Chunks of layers on one stage; of interleaved.
        layers: Layers, where they may not divide evenly; default one size for all.
        forward: What F costs on a whole stage of mean size, in any unit.
        input_gradient: What I costs; B is I and W.
        weight_gradient: What W costs.
        send: What it takes to hand a result to another stage.
        figure: Write the picture to this .svg or .png file.
        json: Print JSON.
    """
    from scaling_lab.parallel import schedules

    if figure is not None and figure.suffix not in (".svg", ".png"):
        raise ValueError(f"--figure {figure}: pictures are .svg or .png")
    made = schedules.make(kind, stages, microbatches, virtual)
    sizes = None if layers is None else schedules.layers_of(made.chunks, layers)
    costs = schedules.Costs(forward, input_gradient, weight_gradient, send)
    found = schedules.simulate(made, costs, sizes)
    if figure is not None:
        _draw(found, figure)
    if json:
        print(json_.dumps(_facts(found, sizes), indent=1))
        return 0
    say = Console(highlight=False, soft_wrap=True)
    say.print(_title(found), markup=False)
    width = say.width if sys.stdout.isatty() else 120
    say.print(schedules.text(found, width), markup=False)
    for note in _notes(found):
        say.print(note, markup=False)
    if figure is not None:
        say.print(f"written: {figure}", markup=False)
    return 0


def _title(found: Any) -> str:
    made = found.schedule
    chunks = f", {made.virtual} chunks of layers each" if made.virtual > 1 else ""
    return (
        f"{made.name}: {made.stages} stages{chunks}, {made.microbatches} microbatches"
    )


def _notes(found: Any) -> Sequence[str]:
    held = ", ".join(f"{number:g}" for number in found.in_flight)
    busy = found.seconds * (1 - found.bubble)
    return [
        f"bubble {found.bubble:.1%}: {found.seconds:g} from start to end, of which a "
        f"stage works {busy:g}",
        f"microbatches held at once, by stage: {held}",
    ]


def _facts(found: Any, sizes: Sequence[int] | None) -> dict[str, Any]:
    made = found.schedule
    return {
        "kind": made.name,
        "stages": made.stages,
        "microbatches": made.microbatches,
        "virtual": made.virtual,
        "layers": sizes,
        "time": found.seconds,
        "bubble": found.bubble,
        "idle": list(found.idle),
        "in_flight": list(found.in_flight),
        "tasks": [
            [
                {**span.task._asdict(), "start": span.start, "end": span.end}
                for span in s
            ]
            for s in found.spans
        ],
    }


def _bars(found: Any) -> list[Any]:
    from scaling_lab.studies.timeline import Bar

    return [
        Bar(
            stage,
            span.start,
            span.end,
            f"{span.task.microbatch}",
            span.task.does,
            span.task.chunk % 2 == 1,
        )
        for stage, spans in enumerate(found.spans)
        for span in spans
        if span.end > span.start
    ]


def _draw(found: Any, figure: Path) -> None:
    if figure.suffix == ".png":
        return _png(found, figure)
    from scaling_lab.studies.timeline import timeline

    rows = [f"stage {number}" for number in range(found.schedule.stages)]
    notes = list(_notes(found))
    if found.schedule.virtual > 1:
        notes.append("Every other chunk of layers is paler.")
    figure.write_text(timeline(rows, _bars(found), _title(found), notes) + "\n")


def _png(found: Any, figure: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "a PNG is drawn by matplotlib: pip install 'scaling_lab[notebooks]', or "
            f"write --figure {figure.with_suffix('.svg')}, which needs nothing"
        ) from None
    from scaling_lab.studies.timeline import COLOURS, NAMES

    stages = found.schedule.stages
    drawing = Figure((11, 1.4 + 0.36 * stages), dpi=150, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    named = set()
    for bar in _bars(found):
        width = bar.end - bar.start
        axes.barh(
            bar.row,
            width,
            0.86,
            bar.start,
            color=COLOURS[bar.kind],
            alpha=0.72 if bar.faint else 1.0,
            edgecolor="white",
            linewidth=0.5,
            label=None if bar.kind in named else f"{bar.kind} {NAMES[bar.kind]}",
        )
        named.add(bar.kind)
        if width / found.seconds > 0.012 * len(bar.label):
            middle = bar.start + width / 2
            axes.text(
                middle, bar.row, bar.label, ha="center", va="center", color="w", size=7
            )
    axes.set_yticks(range(stages), [f"stage {number}" for number in range(stages)])
    axes.invert_yaxis()
    axes.set_xlim(0, found.seconds)
    axes.set_title(_title(found), loc="left", fontsize=10)
    axes.set_xlabel("\n".join(_notes(found)), fontsize=8, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    drawing.savefig(figure)
