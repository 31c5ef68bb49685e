"""How long do four thousand bootstrap fits take, and are they all at their minimum?

Run:     python -m experiments.bootstrap_fits [--out experiments/results]
Takes:   about a minute on two CPU cores; needs no data.
Expect:  4,000 refits of Chinchilla's law to 240 points in well under a minute, each at
         the minimum that scipy's L-BFGS-B finds for it alone from the same start, or
         below; one at a time takes scipy over ten times the processor's time.

Points are made from the constants that Besiroglu et al. 2024 (arXiv 2404.10102) fitted
to 240 points read off Chinchilla's figure, with noise as heavy-tailed as theirs. Both
sides minimise the same sum of Huber losses (delta 1e-3) with the same gradient, warm
from the fit to all points, in the same process. What is compared is the processor's
time on all cores, so that neighbours on a busy machine do not count; the clock's is
told too.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

import scaling_lab as lab
from scaling_lab.studies import laws
from scaling_lab.studies.fitting.descend import descend
from scaling_lab.studies.fitting.objective import Problem
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.solve import solve
from scaling_lab.studies.fitting.table import points_of

#: A run of the kind whose losses such a law is fitted to.
CONFIGS = [lab.configure("llama", "toy", "data=1", "cpu:1")]
POINTS, REFITS, ALONE = 240, 4000, 100
RESULTS = Path(__file__).parent / "results"


def made(seed: int = 0) -> dict[str, np.ndarray]:
    """Points of a known law: 44M to 16B parameters, 6e18 to 3e21 FLOPs."""
    random = np.random.default_rng(seed)
    n = np.exp(random.uniform(np.log(44e6), np.log(16e9), POINTS))
    c = np.exp(random.uniform(np.log(6e18), np.log(3e21), POINTS))
    d = c / (6 * n)
    law = laws.law("chinchilla")
    values = law.references["besiroglu_2024"].values
    noise = np.exp(random.laplace(0, 0.008, POINTS))
    return {"n": n, "d": d, "loss": law.predict(values, {"n": n, "d": d}) * noise}


def answer(refits: int = REFITS, alone: int = ALONE) -> dict[str, float]:
    """Seconds of both, their ratio, and how far apart the minima are."""
    import pandas as pd

    law, options = laws.law("chinchilla"), Options(huber=1e-3)
    points = points_of(pd.DataFrame(made()), law, options)
    solved = solve(law, points, options)
    drawn = np.random.default_rng(1).multinomial(
        POINTS, np.full(POINTS, 1 / POINTS), refits
    )
    problem = dataclasses.replace(solved.problem, weight=drawn.astype(float))
    start = np.repeat(solved.at_free[None], refits, 0)
    clock, before = time.perf_counter(), time.process_time()
    together = descend(problem, start)
    clock, seconds = time.perf_counter() - clock, time.process_time() - before
    before = time.process_time()
    theirs = np.array(
        [_alone(problem, place, solved.at_free) for place in range(alone)]
    )
    each = (time.process_time() - before) / alone
    gap = theirs / together.value[:alone] - 1
    return {
        "points": POINTS,
        "refits": refits,
        "cores": os.cpu_count() or 0,
        "clock_seconds": round(clock, 2),
        "processor_seconds": round(seconds, 2),
        "at_rest": float(together.rested.mean()),
        "refits_alone": alone,
        "processor_seconds_of_all_alone": round(each * refits, 1),
        "ratio": round(each * refits / seconds, 2),
        "lowest_gap": float(gap.min()),
        "median_gap": float(np.median(gap)),
        "highest_gap": float(gap.max()),
    }


def _alone(problem: Problem, place: int, start: np.ndarray) -> float:
    """scipy's minimum of one refit."""
    one = problem.rows(np.array([place]))

    def fun(at: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = one.value(at[None])
        return value[0], slope[0]

    options = {"maxiter": 10_000, "maxfun": 10_000, "ftol": 1e-14, "gtol": 1e-12}
    return minimize(fun, start, jac=True, method="L-BFGS-B", options=options).fun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    found = answer()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bootstrap_fits.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{found['refits']} refits of {found['points']} points: "
        f"{found['clock_seconds']} s, of processors {found['processor_seconds']} s"
    )
    print(
        "one at a time by L-BFGS-B: of processors "
        f"{found['processor_seconds_of_all_alone']} s (from {ALONE})"
    )
    print(f"ratio: {found['ratio']}")
    print(
        "their minima over ours, less one: "
        f"{found['lowest_gap']:.2g} to {found['highest_gap']:.2g}"
    )


if __name__ == "__main__":
    main()
