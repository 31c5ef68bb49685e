"""How good is the first choice of the search, on clusters whose every layout was timed?

Run:     python -m experiments.search_quality [--data ../shared/data]
Takes:   about a minute on one CPU core; needs the step-time tables.
Expect:  over all groups a median regret of 1.00, a 90th percentile under 1.15 and a
         median Spearman above 0.95, where a layout at random loses half its time; on
         the four groups of several nodes about 1.06 and 0.65, which is not enough.

vTrain's tables hold good and bad layouts of the same model, machine and batch: one
group. Each model, and each machine, is held out in turn: the efficiencies are fitted to
the rest, starting from those of the published runs, and the group's layouts are ranked
by them. Regret is the measured time of a choice over the best measured of its group.
Beside it: a layout taken at random, and the rule of thumb (the smallest tensor × stage
that fits; where several share it, their mean).
"""

import argparse
import time

import numpy as np
import pandas as pd

import scaling_lab as lab
from experiments import _tables
from scaling_lab.cost import calibrations
from scaling_lab.cost.fit import held_out
from scaling_lab.cost.published import read_rows
from scaling_lab.cost.step_tables import vtrain_table
from scaling_lab.plan import Question, of_config, rank

TABLES = ("vtrain_single_half.csv", "vtrain_multi_half.csv")
#: The search that is timed.
CONFIGS = [
    lab.configure(
        "llama",
        "70b",
        "fsdp=512",
        "tpu-v5p:8x8x8",
        batch=512,
        length=8192,
        precision="bfloat16",
        remat="full",
    )
]
#: Layouts that a group needs to be ranked at all.
LEAST = 3
#: What a group shares.
SAME = ["model", "n_heads", "seq_len", "chips", "global_batch_tokens"]
#: How far rows of the table may move the efficiencies of the published runs.
TIGHT = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    _tables.argument(parser)
    names = {name: f"step_times/{name}" for name in TABLES}
    data = _tables.folder(parser.parse_args().data, *names.values())
    tables = {name: vtrain_table(data / path) for name, path in names.items()}
    for held in ("model", "chips"):
        print(f"\neach {'machine' if held == 'chips' else held} held out in turn")
        both = []
        for name, table in tables.items():
            both.append(judge(table, predicted(table, held)))
            say(name, both[-1])
        say("both tables", pd.concat(both))
    count, seconds = search()
    print(f"\nsearch of Llama 70B on 512 v5p: {count:,} candidates in {seconds:.1f} s")


def predicted(table: pd.DataFrame, held: str) -> np.ndarray:
    """Predicted seconds of every row, those that share its ``held`` out of the fit."""
    rows = read_rows(table)
    assert rows.points is not None and len(rows.points) == len(table), rows.reasons
    start = calibrations.frozen()
    seconds = table.step_seconds.to_numpy()
    return held_out(rows.points, seconds, table[held].to_numpy(), start, TIGHT)


def judge(table: pd.DataFrame, seconds: np.ndarray) -> pd.DataFrame:
    """One row a group: regret of each way to choose, and Spearman's correlation."""
    group = table[SAME].astype(str).agg(" ".join, axis=1).to_numpy()
    clock = table.step_seconds.to_numpy()
    split = (table.tensor * table.stage).to_numpy()
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


def say(what: str, groups: pd.DataFrame) -> None:
    """Medians and 90th percentiles over groups."""
    print(f"{what}: {len(groups)} groups of {groups.layouts.sum()} layouts")
    for choice, words in (
        ("regret", "the search's first choice"),
        ("thumb", "smallest tensor × stage"),
        ("random", "a layout at random"),
    ):
        column = groups[choice]
        print(
            f"  {words:26} regret: median {column.median():.3f}, 90th percentile "
            f"{column.quantile(0.9):.3f}"
        )
    ranks = groups.spearman
    print(
        f"  Spearman within groups: median {ranks.median():.3f}, mean "
        f"{ranks.mean():.3f}, {(ranks >= 0.9).mean():.0%} of groups at 0.9 and more"
    )


def search() -> tuple[int, float]:
    """Candidates of one large search, and seconds that it takes."""
    (config,) = CONFIGS
    shape = of_config(config.model)
    question = Question(shape, config.parsed_target(), config.batch, config.length)
    start = time.perf_counter()
    count = len(rank.rank(question).candidates)
    return count, time.perf_counter() - start


if __name__ == "__main__":
    main()
