"""Published runs beside what is predicted of them and what our own step would take.

Two predictions, which answer two questions. *Predicted* prices the run as it was run:
its software, schedule, precision and remat, by the columns of published runs (as
`scaling-lab predict --runs` does). *Ours* prices our own program for the same model,
batch and machine under the nearest layout; where it was compiled, what the compiler's
schedule takes stands beside it.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab.cost.predict import predict
from scaling_lab.cost.published import read_rows
from scaling_lab.cost.runs import points_of

#: A deviation beyond this is explained.
FAR = 0.15


@dataclasses.dataclass(frozen=True)
class Run:
    """One published run.

    Attributes:
      name: what people call it.
      columns: it, in the columns of published runs.
      seconds: of its step. said: the figure as published, with its convention.
      config: our nearest; ``None`` where our families or layouts say it not at all.
      why: why the prediction is off, if it is.
      differs: what our program does otherwise.
      fitted: the prediction's efficiencies were fitted on this run among others.
    """

    name: str
    columns: dict[str, Any]
    seconds: float
    said: str
    config: lab.RunConfig | None = None
    why: str = ""
    differs: str = ""
    fitted: bool = False


def config(size: str, model: Any, target: str, layout: str, **words: Any):
    """A config of any dims."""
    family = type(model).__module__.rpartition(".")[2]
    base = lab.configure(family, "toy", layout, target, **words)
    return dataclasses.replace(base, model=model, size=size)


def configs(runs: Sequence[Run]) -> list[lab.RunConfig]:
    """Our configs, each once."""
    found = {run.config.id: run.config for run in runs if run.config is not None}
    return list(found.values())


def main(
    doc: str | None,
    conventions: str,
    runs: Sequence[Run],
    results: Path,
    after: Callable[[list[dict[str, Any]]], str] = lambda rows: "",
) -> None:
    """What a study's module runs: prints its table, compiles what is asked for.

    Args:
      after: what is said of the rows after them.
    """
    parser = kept.parser(doc)
    parser.add_argument("--only", help="compile runs whose name has this alone")
    given: argparse.Namespace = parser.parse_args()
    some = [run for run in runs if given.only is None or given.only in run.name]
    if given.compile:
        kept.records(configs(some), results, compiles=True)
    found = answer(runs, results)
    said = {"conventions": conventions, "rows": found, "after": after(found)}
    kept.say(said, _text, given.json)


def answer(runs: Sequence[Run], results: Path) -> list[dict[str, Any]]:
    """Every run with its published, predicted, our and compiled seconds."""
    table = read_rows(pd.DataFrame([run.columns for run in runs]))
    assert table.points is not None and len(table.index) == len(runs), table.reasons
    theirs = predict(table.points)
    compiled = kept.records(configs(runs), results)
    found = []
    for place, run in enumerate(runs):
        seconds = float(theirs.step_seconds[place])
        low, high = theirs.low_seconds[place], theirs.high_seconds[place]
        found.append(
            {
                "name": run.name,
                "published_seconds": run.seconds,
                "said": run.said,
                "predicted_seconds": seconds,
                "predicted_low_seconds": float(low),
                "predicted_high_seconds": float(high),
                "ratio": seconds / run.seconds,
                "fitted": run.fitted,
                "assumed": table.assumptions[place],
                "why": run.why,
                **_ours(run, compiled),
            }
        )
    return found


def _ours(run: Run, compiled: dict[str, Any]) -> dict[str, Any]:
    """Our program's seconds: on paper, and by the compiler where it was asked."""
    blank = {"layout": None, "our_seconds": None, "our_ratio": None}
    if run.config is None:
        names = ("compiled_seconds", "compiled_ratio", "needed_bytes", "hbm_bytes")
        empty: dict[str, Any] = dict.fromkeys(names)
        return {**blank, **empty, "differs": run.differs}
    seconds = float(predict(points_of([run.config])).step_seconds[0])
    record = compiled.get(run.config.id)
    column = (record.compiled or {}) if record is not None else {}
    compiled_seconds = column.get("step_seconds")
    return {
        "layout": f"{run.config.target} {run.config.layout.name}",
        "our_seconds": seconds,
        "our_ratio": seconds / run.seconds,
        "compiled_seconds": compiled_seconds,
        "compiled_ratio": compiled_seconds and compiled_seconds / run.seconds,
        "needed_bytes": column.get("needed_bytes") or column.get("peak_bytes"),
        "hbm_bytes": column.get("hbm_bytes"),
        "differs": run.differs,
    }


def _text(found: dict[str, Any]) -> str:
    """The rows as a table to read, and what lies behind the far ones."""
    rows = found["rows"]
    width = max(len(row["name"]) for row in rows)
    lines = [
        found["conventions"],
        "",
        f"{'run':{width}} {'published':>10} {'predicted':>10} {'80 %':>15} "
        f"{'ratio':>6} {'ours':>8} {'ratio':>6} {'compiled':>9} {'ratio':>6}",
    ]
    lines += [_line(row, width) for row in rows]
    lines.append(
        "seconds of a step; * among the runs that the efficiencies are fitted to"
    )
    unseen = [row["ratio"] for row in rows if not row["fitted"]]
    if unseen:
        said = kept.error_text(kept.errors(unseen))
        lines.append(f"predicted, runs that no fit has seen: {said}")
    lines += [*_explained(rows), *_too_large(rows), found["after"]]
    return "\n".join(lines).rstrip()


def _line(row: dict[str, Any], width: int) -> str:
    low, high = row["predicted_low_seconds"], row["predicted_high_seconds"]
    mark = "*" if row["fitted"] else " "
    text = (
        f"{row['name']:{width}} {row['published_seconds']:10.3f} "
        f"{row['predicted_seconds']:9.3f}{mark} {f'{low:.3g} to {high:.3g}':>15} "
        f"{row['ratio']:6.2f}"
    )
    for name, size in (("our", 8), ("compiled", 9)):
        seconds, ratio = row[f"{name}_seconds"], row[f"{name}_ratio"]
        text += f" {f'{seconds:.3f}' if seconds else '–':>{size}}"
        text += f" {f'{ratio:.2f}' if ratio else '–':>6}"
    return text


def _explained(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows beyond the limit say of themselves, like words once."""
    lines = []
    for title, ratio, words in (
        ("the prediction is off by more than 15 %:", "ratio", "why"),
        ("our program takes another time, predicted:", "our_ratio", "differs"),
        ("our program takes another time, compiled:", "compiled_ratio", "differs"),
    ):
        said: dict[str, list[str]] = {}
        for row in rows:
            if row[ratio] is not None and abs(row[ratio] - 1) > FAR:
                said.setdefault(row[words], []).append(row["name"])
        if said:
            lines.append(title)
            lines += [f"  {', '.join(names)}: {why}" for why, names in said.items()]
    return lines


def _too_large(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The compiled programs that a device has too little memory for."""
    over = [
        f"{row['name']} ({row['needed_bytes'] / 2**30:.1f} of "
        f"{row['hbm_bytes'] / 2**30:.1f} GiB a device)"
        for row in rows
        if row["needed_bytes"] and row["needed_bytes"] > row["hbm_bytes"]
    ]
    return (
        [f"our program, as compiled, does not fit: {', '.join(over)}"] if over else []
    )


def gpt(
    layers: int, width: int, heads: int, chips: int, gpu: dict[str, Any]
) -> dict[str, Any]:
    """Columns of a GPT of Megatron-LM's papers; ``gpu`` adds layout and batch."""
    return {
        **{"framework": "Megatron-LM (2021)", "mlp": "gelu", "vocab": 51_200},
        **{"seq_len": 2048, "hardware": "a100-80gb", "precision": "fp16", "context": 1},
        **{"layers": layers, "d_model": width, "n_heads": heads, "kv_heads": heads},
        **{"head_dim": width // heads, "d_ff": 4 * width, "chips": chips},
        **gpu,
    }
