"""Kaplan's joint law of parameters and data.

Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5. N is without embeddings, the loss
that of early stopping.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.law import Array, Columns, Law, Parameter, Reference


def curve(at_BP: Array, columns: Columns) -> tuple[Array, Array]:
    """``alpha_D * log((Nc / N)^(alpha_N / alpha_D) + Dc / D)`` with its derivatives."""
    n_c, d_c, a_n, a_d = (at_BP[:, index, None] for index in range(4))
    far_n, far_d = n_c - np.log(columns["n"]), d_c - np.log(columns["d"])
    of_n = a_n / a_d * far_n
    total = np.logaddexp(of_n, far_d)
    share = np.exp(of_n - total)
    moved = total - share * of_n
    return a_d * total, np.stack(
        [share * a_n + 0 * far_n, a_d * (1 - share), share * far_n, moved], -1
    )


LAW = Law(
    title="Kaplan, joint in parameters and data",
    formula="L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D",
    parameters=(
        Parameter("Nc", "parameters of loss 1", True, (1e12, 1e14, 1e16)),
        Parameter("Dc", "tokens of loss 1", True, (1e12, 1e14)),
        Parameter("alpha_N", "exponent of parameters", False, (0.05, 0.1, 0.2)),
        Parameter("alpha_D", "exponent of tokens", False, (0.05, 0.1, 0.2)),
    ),
    needs=("n", "d"),
    curve=curve,
    references={
        "kaplan_2020": Reference(
            {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
            "Kaplan et al. 2020, arXiv 2001.08361, table 2",
            "secondary",
            "N without embeddings; their tokenizer's tokens",
        )
    },
)
