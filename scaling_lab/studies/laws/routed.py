"""Routed models: what experts are worth at a size, as a bilinear law of logarithms.

Clark et al. 2022 (arXiv 2202.01169), equations 2 and 9; logarithms to base ten; N are
the parameters one token uses without its expert's multiplicity.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.law import Array, Columns, Law, Parameter, Reference

_TEN = np.log(10.0)


def curve(at_BP: Array, columns: Columns) -> tuple[Array, Array]:
    """``a log N + b log Ê + c log N log Ê + d``, Ê saturating, with derivatives."""
    a, b, c, d, start, most = (at_BP[:, index, None] for index in range(6))
    log_n = np.log10(columns["n"])
    low, high = np.exp(-start), np.exp(-most)
    inner = columns["experts"] - 1 + 1 / (low - high)
    seen = 1 / inner + high
    log_e = -np.log10(seen)
    by_e = b + c * log_n
    # seen by log E_start and by log E_max.
    by_low = inner**-2 * (low - high) ** -2
    of_start = -by_e / (seen * _TEN) * by_low * -low
    of_most = -by_e / (seen * _TEN) * (1 - by_low) * -high
    ones = np.ones_like(log_e)
    return _TEN * (a * log_n + b * log_e + c * log_n * log_e + d), _TEN * np.stack(
        [log_n * ones, log_e, log_n * log_e, ones, of_start, of_most], -1
    )


LAW = Law(
    title="Routed: experts at a size",
    formula=(
        "log L = a log N + b log Ê + c log N log Ê + d, "
        "1/Ê = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max"
    ),
    parameters=(
        Parameter("a", "of parameters", False, (-0.1, -0.05)),
        Parameter("b", "of experts", False, (-0.15, -0.05)),
        Parameter("c", "of both", False, (0.0, 0.01)),
        Parameter("d", "constant", False, (0.8, 1.2)),
        Parameter("E_start", "experts below which none counts", True, (1.5, 3.0)),
        Parameter("E_max", "experts beyond which none counts", True, (100.0, 500.0)),
    ),
    needs=("n", "experts"),
    curve=curve,
    loss="log_mse",
    references={
        "clark_2022_s_base": Reference(
            {
                "a": -0.082,
                "b": -0.108,
                "c": 0.009,
                "d": 1.104,
                "E_start": 1.847,
                "E_max": 314.478,
            },
            "Clark et al. 2022, arXiv 2202.01169, table 3, S-BASE",
            "secondary",
            "130B tokens",
        )
    },
)
