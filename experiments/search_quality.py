"""How good is the first choice of the search, on clusters whose every layout was timed?

Run:     python -m experiments.search_quality [--tables FOLDER]
Takes:   about a minute on one CPU core; needs the step-time tables beside the
         repository (``../shared/data/step_times``, or $SCALING_LAB_SHARED).
Expect:  on single nodes a median regret of 1.00 and a 90th percentile under 1.15, a
         median Spearman above 0.95; on the four groups of several nodes about 1.06
         and 0.6. A random legal choice loses 40 % and more on single nodes.

The tables (vTrain, Bang et al. 2024: GPT on nodes of eight A100-80GB, trained by
Megatron) hold good and bad layouts of the same model, machine and batch: one group.
Each model on each machine is held out in turn: the efficiencies are fitted to the rest,
starting from those of the published runs, and the group's layouts are ranked by them.
Regret is the measured time of a choice over the best measured of its group. Beside it:
a layout taken at random, and the rule of thumb (the smallest tensor × stage that fits;
where several share it, their mean).
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

from scaling_lab.cost import calibrations
from scaling_lab.cost.fit import fit
from scaling_lab.cost.points import Points
from scaling_lab.cost.predict import predict
from scaling_lab.cost.published import read_rows

#: It runs nothing; it is judged on tables.
CONFIGS = []
READS = ("vtrain_single_half.csv", "vtrain_multi_half.csv")

#: Layouts that a group needs to be ranked at all.
LEAST = 3
#: What a group shares; without the batch, what is held out together.
UNIT = ["# GPUs", "hidden size", "attention heads", "# layers", "sequence length"]
_NAMES = {
    "# layers": "layers",
    "hidden size": "d_model",
    "attention heads": "n_heads",
    "sequence length": "seq_len",
    "micro batch": "microbatch_seqs",
    "# GPUs": "chips",
    "data parallelism": "data",
    "tensor parallelism": "tensor",
    "pipeline parallelism": "stage",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=Path, default=None)
    folder = parser.parse_args().tables or beside()
    both = []
    for name in READS:
        if not (folder / name).exists():
            raise SystemExit(
                f"no {name} in {folder}: give its folder with --tables, or set "
                "$SCALING_LAB_SHARED"
            )
        table = pd.read_csv(folder / name)
        seconds = predicted(table)
        groups = judge(table, seconds)
        both.append(groups)
        report(name, table, seconds, groups)
    say("both tables", pd.concat(both))


def beside() -> Path:
    """The folder of the tables beside the repository."""
    shared = Path(__file__).parents[1] / ".." / "shared"
    shared = Path(os.environ.get("SCALING_LAB_SHARED") or shared)
    return shared / "data" / "step_times"


def points_of(table: pd.DataFrame) -> Points:
    """A table's rows as points: GPT trained by Megatron, recomputed in full."""
    published = table.rename(columns=_NAMES).assign(
        run=[str(number) for number in range(len(table))],
        source="vtrain",
        framework="megatron",
        model="gpt3",
        d_ff=4 * table["hidden size"],
        vocab=51_200,
        global_batch_tokens=table["global batch"] * table["sequence length"],
        hardware="a100-80gb",
        fsdp=1,
        zero_stage=1,
        virtual_stages=1,
        context=1,
        expert=1,
        schedule="1f1b",
        precision="fp16",
        remat="full",
        technique="",
    )
    rows = read_rows(published)
    unread = [reason for reason in rows.reasons if reason]
    if unread or rows.points is None:
        raise ValueError(f"{len(unread)} rows cannot be read, first: {unread[:1]}")
    return rows.points.replace(flash=0)


def measured(table: pd.DataFrame) -> np.ndarray:
    """Seconds of a step, one a row."""
    return table["iteration time (ms)"].to_numpy() / 1e3


def predicted(table: pd.DataFrame) -> np.ndarray:
    """Predicted seconds of every row, its model and machine held out of the fit."""
    points, clock = points_of(table), measured(table)
    unit = labels(table, UNIT)
    found = np.full(len(table), np.nan)
    for held in np.unique(unit):
        mine = unit == held
        rest = fit(points.take(~mine), clock[~mine], start=calibrations.frozen())
        found[mine] = predict(points.take(mine), rest.calibration).step_seconds
    return found


def judge(table: pd.DataFrame, seconds: np.ndarray) -> pd.DataFrame:
    """One row a group: regret of each way to choose, and Spearman's correlation."""
    group = labels(table, [*UNIT, "global batch"])
    clock = measured(table)
    split = (table["tensor parallelism"] * table["pipeline parallelism"]).to_numpy()
    rows = []
    for name in np.unique(group):
        mine = group == name
        if mine.sum() < LEAST:
            continue
        own, guess, ways = clock[mine], seconds[mine], split[mine]
        best = own.min()
        rows.append(
            {
                "group": name,
                "layouts": int(mine.sum()),
                "regret": own[guess.argmin()] / best,
                "random": own.mean() / best,
                "thumb": own[ways == ways.min()].mean() / best,
                "spearman": spearman(own, guess),
            }
        )
    return pd.DataFrame(rows)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank."""
    return float(pd.Series(first).corr(pd.Series(second), method="spearman"))


def labels(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """A text for every row from some columns."""
    return table[columns].astype(str).agg(" ".join, axis=1).to_numpy()


def report(
    name: str, table: pd.DataFrame, seconds: np.ndarray, groups: pd.DataFrame
) -> None:
    """What came of one table."""
    error = np.abs(seconds / measured(table) - 1)
    print(
        f"{name}: {len(table)} rows, each model and machine held out: step time off by "
        f"{error.mean():.1%} in the mean, {np.median(error):.1%} in the median"
    )
    say(f"{len(groups)} groups of {LEAST} layouts and more", groups)


def say(what: str, groups: pd.DataFrame) -> None:
    """Medians and 90th percentiles over groups."""
    print(f"{what}:")
    for choice, words in (
        ("regret", "the search's first choice"),
        ("thumb", "smallest tensor × stage"),
        ("random", "a random layout"),
    ):
        column = groups[choice]
        print(
            f"  {words:26} regret: median {column.median():.3f}, 90th percentile "
            f"{column.quantile(0.9):.3f}"
        )
    rank = groups.spearman
    print(
        f"  Spearman within groups: median {rank.median():.3f}, mean {rank.mean():.3f}, "
        f"{(rank >= 0.9).mean():.0%} of groups at 0.9 and more"
    )


if __name__ == "__main__":
    main()
