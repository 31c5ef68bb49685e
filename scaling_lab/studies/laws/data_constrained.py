"""Repeated data: tokens seen again, and parameters beyond the data, are worth less.

Muennighoff et al. 2023 (arXiv 2305.16264), equations 5 and 6. The optimum is so flat
that R_D from 15 to 300 changes the objective on their points by 0.15 %: fit with the
base constants fixed, and compare objectives.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.law import Array, Columns, Law, Parameter, Reference


def curve(at_BP: Array, columns: Columns) -> tuple[Array, Array]:
    """The base law of effective tokens and parameters, with its derivatives."""
    e, a, b, alpha, beta, r_d, r_n = (at_BP[:, index, None] for index in range(7))
    log_n, log_d = np.log(columns["n"]), np.log(columns["d"])
    log_u = np.minimum(np.log(columns["unique"]), log_d)
    # Parameters that the unique tokens deserve: N = G^(1 + beta/alpha) U^(beta/alpha).
    log_g = (np.log(alpha) + a - np.log(beta) - b) / (alpha + beta)
    deserved = log_g * (1 + beta / alpha) + log_u * beta / alpha
    few = deserved < log_n
    base_n = np.where(few, deserved, log_n)
    worth_d, by_log_d, by_r_d = _worth(log_d - log_u, r_d)
    worth_n, by_log_n, by_r_n = _worth(log_n - base_n, r_n)
    inside = np.stack(
        [
            e + 0 * log_n,
            a - alpha * (base_n + worth_n),
            b - beta * (log_u + worth_d),
        ]
    )
    total = np.logaddexp.reduce(inside, 0)
    share = np.exp(inside - total)
    # d(base_n + worth_n) / d(deserved), where it is deserved that bounds.
    slope = np.where(few, 1 - by_log_n, 0.0)
    of_g = {
        "a": 1 / (alpha + beta),
        "b": -1 / (alpha + beta),
        "alpha": (1 / alpha - log_g) / (alpha + beta),
        "beta": (-1 / beta - log_g) / (alpha + beta),
    }
    turn = 1 + beta / alpha
    bends = {
        "a": turn * of_g["a"],
        "b": turn * of_g["b"],
        "alpha": turn * of_g["alpha"] - (log_g + log_u) * beta / alpha**2,
        "beta": turn * of_g["beta"] + (log_g + log_u) / alpha,
    }
    bent = {name: -alpha * slope * bend for name, bend in bends.items()}
    return total, np.stack(
        [
            share[0],
            share[1] * (1 + bent["a"]),
            share[2] + share[1] * bent["b"],
            share[1] * (bent["alpha"] - base_n - worth_n),
            share[1] * bent["beta"] - share[2] * (log_u + worth_d),
            -share[2] * beta * by_r_d,
            -share[1] * alpha * by_r_n,
        ],
        -1,
    )


def _worth(log_times: Array, log_r: Array) -> tuple[Array, Array, Array]:
    """log of 1 + R (1 - exp(-(times - 1) / R)), and by log times and by log R."""
    repeats = np.expm1(np.maximum(log_times, 0.0))
    r = np.exp(log_r)
    left = np.exp(-repeats / r)
    worth = 1 - r * np.expm1(-repeats / r)
    by_times = np.where(log_times > 0, (repeats + 1) * left / worth, 0.0)
    by_r = (-r * np.expm1(-repeats / r) - repeats * left) / worth
    return np.log(worth), by_times, by_r


LAW = Law(
    title="Data-constrained: what repeated tokens are worth",
    formula=(
        "L = E + A / N'^alpha + B / D'^beta; "
        "D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), "
        "N' likewise, with R_N, from the parameters that U deserves"
    ),
    parameters=(
        Parameter("E", "loss of the text itself", True, (1.0, 1.87)),
        Parameter("A", "of parameters", True, (50.0, 520.0)),
        Parameter("B", "of tokens", True, (100.0, 1500.0)),
        Parameter("alpha", "exponent of parameters", False, (0.25, 0.35)),
        Parameter("beta", "exponent of tokens", False, (0.25, 0.35)),
        Parameter(
            "R_D", "repetitions that are worth 1 - 1/e", True, (5.0, 30.0, 100.0)
        ),
        Parameter("R_N", "the same of excess parameters", True, (1.0, 5.0, 30.0)),
    ),
    needs=("n", "d", "unique"),
    curve=curve,
    references={
        "muennighoff_2023": Reference(
            {
                "E": float(np.exp(0.6254804)),
                "A": float(np.exp(6.255414)),
                "B": float(np.exp(7.3049974)),
                "alpha": 0.3526596,
                "beta": 0.3526596,
                "R_D": 15.387756,
                "R_N": 5.309743,
            },
            "Muennighoff et al. 2023, arXiv 2305.16264, section 5 and their notebook",
            "read",
            "182 points; the base of C4 fixed, R_D and R_N fitted; a flat optimum",
        )
    },
)
