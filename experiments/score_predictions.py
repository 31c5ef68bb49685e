"""How well are step times predicted that the fit has never seen?

Run:     python -m experiments.score_predictions [--data ../shared/data] [--json]
Takes:   about two minutes on one CPU core.
Expect:  leaving one repository out, a median error near 9 % over all published runs,
         a third of a look-up's; pairs of layouts ordered correctly in 85 %; 80 %
         intervals that hold 70 to 90 % of the rows; vTrain's tables within 7 % (one
         node) and 12 % (several), each model and machine held out; and far more than
         10,000 layouts a second.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scaling_lab as lab
from experiments import _tables
from scaling_lab.cost import baselines, calibrations
from scaling_lab.cost.calibrating import repository
from scaling_lab.cost.efficiencies import family_of
from scaling_lab.cost.fit import half_width, held_out
from scaling_lab.cost.points import PRECISIONS, Points
from scaling_lab.cost.predict import predict, unsure
from scaling_lab.cost.published import read_rows
from scaling_lab.cost.runs import points_of
from scaling_lab.cost.step_tables import vtrain_table

RUNS = "published_runs/published_runs.csv"
CONFIGS = [
    lab.configure(
        "llama",
        "8b",
        f"fsdp={fsdp}",
        f"h100:{fsdp // 8}x8",
        batch=128,
        length=8192,
        precision="bfloat16",
        remat="full",
    )
    for fsdp in (64, 128)
]
#: vTrain's own mean errors (Bang et al. 2024, section V): one node, several.
VTRAIN = {"vtrain_single_half.csv": 0.0837, "vtrain_multi_half.csv": 0.1473}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    _tables.argument(parser)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = [f"step_times/{name}" for name in VTRAIN]
    scores = score(_tables.folder(given.data, RUNS, *names))
    print(json.dumps(scores, indent=1) if given.json else text(scores))


def score(data: Path) -> dict[str, Any]:
    """Every score, as plain data.

    Raises:
      FileNotFoundError: the tables are not there.
    """
    table = pd.read_csv(data / RUNS)
    rows = read_rows(table)
    assert rows.points is not None
    table, points = table.iloc[rows.index].reset_index(drop=True), rows.points
    seconds = table.step_seconds.to_numpy(float)
    sources = np.array([repository(source) for source in table.source])
    said = {
        "model": held_out(points, seconds, sources, sources=sources),
        **_looked_up(points, seconds, sources),
    }
    inside = _inside(points, seconds, said["model"], sources)
    groups = {
        name: {
            "rows": int(mask.sum()),
            **{who: _errors(p[mask], seconds[mask]) for who, p in said.items()},
            "inside_80": float(inside[mask].mean()),
        }
        for name, mask in groups_of(points, sources).items()
    }
    return {
        "groups": groups,
        "pairs": {who: pairs(points, table, seconds, p) for who, p in said.items()},
        "vtrain": {name: vtrain(data / "step_times" / name) for name in VTRAIN},
        "layouts_per_second": speed(),
    }


def groups_of(points: Points, sources: np.ndarray) -> dict[str, np.ndarray]:
    """Masks by name: all, dense, MoE, low precision, TPU, families, repositories."""
    families = np.array([family_of(str(chip)) for chip in points.chip])
    moe, low = points.n_experts > 0, points.precision >= PRECISIONS.index("float8")
    masks = {"all": moe | True, "dense": ~moe, "moe": moe, "low precision": low}
    masks |= {name: families == name for name in sorted(set(families))}
    return masks | {name: sources == name for name in sorted(set(sources))}


def pairs(
    points: Points, table: pd.DataFrame, seconds: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Of layouts of one model and batch on one machine: the share ordered correctly.

    Only pairs whose measured times differ by more than 5 %, and whose rows differ in
    anything that a prediction is told.
    """
    right = total = 0
    job = list(
        zip(
            table.model,
            points.chip,
            points.devices,
            points.seq_len,
            points.global_batch_tokens,
            strict=True,
        )
    )
    asked = [hash(tuple(row)) for row in _numbers(points)]
    for i in range(len(seconds)):
        for j in range(i):
            apart = abs(np.log(seconds[i] / seconds[j])) > np.log(1.05)
            if job[i] == job[j] and asked[i] != asked[j] and apart:
                total += 1
                slower = predicted[i] > predicted[j]
                right += bool(slower == (seconds[i] > seconds[j]))
    return {"pairs": total, "ordered": right / total if total else float("nan")}


def vtrain(path: Path) -> dict[str, float]:
    """Mean errors on one of vTrain's tables: frozen, models and machines left out."""
    table = vtrain_table(path)
    points = read_rows(table).points
    assert points is not None
    seconds = table.step_seconds.to_numpy()
    start = calibrations.frozen()

    def error(p: np.ndarray) -> float:
        return float(np.mean(np.abs(p / seconds - 1)))

    return {
        "frozen": error(predict(points).step_seconds),
        "model": error(held_out(points, seconds, table.model.to_numpy(), start, 2.0)),
        "machine": error(held_out(points, seconds, points.devices, start, 2.0)),
        "published": VTRAIN[path.name],
    }


def speed(count: int = 20_000) -> float:
    """Layouts predicted in a second, on one core."""
    points = points_of(CONFIGS).take(np.arange(count) % len(CONFIGS))
    predict(points)
    start = time.perf_counter()
    predict(points.take(np.arange(count)))
    return count / (time.perf_counter() - start)


def text(scores: dict[str, Any]) -> str:
    """The scores as a table to read."""
    lines = [
        f"{'':30} {'rows':>4}  {'model':>15}  {'look-up':>15}  {'median':>15}  inside"
    ]
    for name, group in scores["groups"].items():
        cells = [
            f"{group[who]['median']:6.1%} {group[who]['mean']:8.1%}"
            for who in ("model", "look-up", "median of kind")
        ]
        lines.append(
            f"{name:30} {group['rows']:4}  {'  '.join(cells)}  {group['inside_80']:.0%}"
        )
    lines.append("median and mean error of step time, each repository left out in turn")
    for who, found in scores["pairs"].items():
        lines.append(
            f"pairs ordered by {who}: {found['ordered']:.1%} of {found['pairs']}"
        )
    for name, found in scores["vtrain"].items():
        lines.append(
            f"{name}: mean error {found['frozen']:.1%} as frozen, {found['model']:.1%} "
            f"models left out, {found['machine']:.1%} machines left out; vTrain "
            f"{found['published']:.1%}"
        )
    lines.append(f"{scores['layouts_per_second']:,.0f} layouts a second")
    return "\n".join(lines)


def _looked_up(
    points: Points, seconds: np.ndarray, sources: np.ndarray
) -> dict[str, np.ndarray]:
    """Both baselines in the same folds."""
    said = {"look-up": np.zeros(len(points)), "median of kind": np.zeros(len(points))}
    for source in np.unique(sources):
        out, kept = np.where(sources == source)[0], np.where(sources != source)[0]
        have = (points.take(out), points.take(kept), seconds[kept])
        said["look-up"][out] = baselines.nearest_neighbour(*have)
        said["median of kind"][out] = baselines.median_of_kind(*have)
    return said


def _inside(
    points: Points, seconds: np.ndarray, predicted: np.ndarray, sources: np.ndarray
) -> np.ndarray:
    """Whether a row lies in an interval made without its repository's rows."""
    inside = np.zeros(len(points), bool)
    missed = np.abs(np.log(predicted / seconds)) / unsure(points)
    for source in np.unique(sources):
        out, kept = sources == source, np.where(sources != source)[0]
        width = half_width(
            points.take(kept), seconds[kept], predicted[kept], sources[kept]
        )
        inside[out] = missed[out] <= width
    return inside


def _errors(predicted: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    error = np.abs(predicted / seconds - 1)
    return {"median": float(np.median(error)), "mean": float(np.mean(error))}


def _numbers(points: Points) -> np.ndarray:
    from scaling_lab.cost.points import names

    told = [getattr(points, name) for name in names() if name != "chip"]
    return np.nan_to_num(np.stack(told, 1), nan=-1.0)


if __name__ == "__main__":
    main()
