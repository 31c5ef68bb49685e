"""Chinchilla's parametric law (approach 3): a floor, a term in N and one in D.

Hoffmann et al. 2022 (arXiv 2203.15556), equations 2 to 4; refitted by Besiroglu et al.
2024 (arXiv 2404.10102). Parameters and predictions of two fits to the same points may
agree to a percent while A or B differ by a factor: compare predictions.
"""

from __future__ import annotations

from collections.abc import Mapping

from scaling_lab.studies.law import Law, Parameter, Path, Reference, Term


def path(values: Mapping[str, float]) -> Path:
    """The compute-optimal path under C = 6 N D (equation 4)."""
    alpha, beta = values["alpha"], values["beta"]
    both = alpha + beta
    scale = (alpha * values["A"] / (beta * values["B"])) ** (1 / both)
    a, b = beta / both, alpha / both
    return Path(a, b, scale / 6**a, 1 / (scale * 6**b))


def _of(A: float, B: float, E: float, alpha: float, beta: float) -> dict[str, float]:
    return {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta}


LAW = Law(
    title="Chinchilla, parametric (approach 3)",
    formula="L = E + A / N^alpha + B / D^beta",
    parameters=(
        Parameter("E", "loss of the text itself", True, (0.5, 1.0, 2.0)),
        Parameter("A", "of parameters", True, (10.0, 1e3, 1e5)),
        Parameter("B", "of tokens", True, (10.0, 1e3, 1e5)),
        Parameter("alpha", "exponent of parameters", False, (0.2, 0.5, 1.0)),
        Parameter("beta", "exponent of tokens", False, (0.2, 0.5, 1.0)),
    ),
    needs=("n", "d"),
    terms=(
        Term("E"),
        Term("A", (("n", -1.0, "alpha"),)),
        Term("B", (("d", -1.0, "beta"),)),
    ),
    path=path,
    references={
        "hoffmann_2022": Reference(
            _of(406.4, 410.7, 1.6934, 0.3392, 0.2849),
            "Hoffmann et al. 2022, arXiv 2203.15556, equation 10 and its TeX source",
            "read",
            "the minimiser had stopped early; 6 ND, N with embeddings",
        ),
        "besiroglu_2024": Reference(
            _of(482.01, 2085.43, 1.8172, 0.3478, 0.3658),
            "Besiroglu et al. 2024, arXiv 2404.10102, table 1",
            "read",
            "240 points read off a figure; without the five of highest loss",
        ),
        "muennighoff_2023": Reference(
            _of(520.8, 1488.2, 1.8691, 0.35266, 0.35266),
            "Muennighoff et al. 2023, arXiv 2305.16264: e^6.2554, e^7.3050, e^0.62548",
            "read",
            "on C4; alpha and beta tied",
        ),
        "sardana_2023": Reference(
            _of(33.66, 138.9, 1.45, 0.18, 0.24),
            "Sardana et al. 2023, arXiv 2401.00448",
            "secondary",
        ),
    },
)
