"""Precision of training: fewer bits are fewer effective parameters.

Kumar et al. 2024 (arXiv 2411.04330), equations 3 and 4, with weights, activations and
keys in the same number of bits.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.law import Array, Columns, Law, Parameter


def curve(at_BP: Array, columns: Columns) -> tuple[Array, Array]:
    """Chinchilla's law of N (1 - exp(-P / gamma))^3, with derivatives."""
    e, a, b, alpha, beta, scale = (at_BP[:, index, None] for index in range(6))
    log_d, bits = np.log(columns["d"]), columns["bits"]
    each = bits / np.exp(scale)
    effective = np.log(columns["n"]) + 3 * np.log(-np.expm1(-each))
    inside = np.stack([e + 0 * log_d, a - alpha * effective, b - beta * log_d])
    total = np.logaddexp.reduce(inside, 0)
    share = np.exp(inside - total)
    lost = 3 * each / np.expm1(each)
    return total, np.stack(
        [
            *share,
            -share[1] * effective,
            -share[2] * log_d,
            share[1] * alpha * lost,
        ],
        -1,
    )


LAW = Law(
    title="Precision of training",
    formula="L = E + A / (N (1 - exp(-P / gamma))^3)^alpha + B / D^beta",
    parameters=(
        Parameter("E", "loss of the text itself", True, (1.0, 2.0)),
        Parameter("A", "of parameters", True, (100.0, 1e4)),
        Parameter("B", "of tokens", True, (100.0, 1e4)),
        Parameter("alpha", "exponent of parameters", False, (0.3, 0.5)),
        Parameter("beta", "exponent of tokens", False, (0.3, 0.5)),
        Parameter("gamma", "bits that keep 1 - 1/e", True, (1.0, 3.0)),
    ),
    needs=("n", "d", "bits"),
    curve=curve,
    references={},
)
