"""Kaplan's joint law of parameters and data.

Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5. N is without embeddings, the loss
that of early stopping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from scaling_lab.studies.law import Array, Columns, Law, Parameter, Path, Reference


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


def path(values: Mapping[str, float]) -> Path:
    """The compute-optimal path under C = 6 N D.

    The loss is lowest where ``(Nc / N)^r + 6 Dc N / C`` is, with r = alpha_N / alpha_D:
    ``N*^(r + 1) = r Nc^r C / (6 Dc)``.

    Raises:
      ValueError: exponents of a loss that rises with its columns: nowhere is best.
    """
    if min(values["alpha_N"], values["alpha_D"]) <= 0:
        raise ValueError("no loss is lowest where an exponent is not positive")
    r = values["alpha_N"] / values["alpha_D"]
    inside = math.log(r) + r * math.log(values["Nc"]) - math.log(6 * values["Dc"])
    scale = math.exp(inside / (r + 1))
    return Path(1 / (r + 1), r / (r + 1), scale, 1 / (6 * scale))


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
    path=path,
    references={
        "kaplan_2020": Reference(
            {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
            "Kaplan et al. 2020, arXiv 2001.08361, table 2",
            "secondary",
            "N without embeddings; their tokenizer's tokens",
        )
    },
)
