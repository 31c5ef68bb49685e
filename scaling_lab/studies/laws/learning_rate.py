"""The best learning rate by parameters and tokens.

Li et al. 2025, "Step Law" (arXiv 2503.04715). A sweep's table may come as it is: of
every (N, D) the rows within a quarter of a percent of its lowest loss count as best.
"""

from __future__ import annotations

from scaling_lab.studies.fitting.best import near_best
from scaling_lab.studies.law import Law, Parameter, Reference, Term

LAW = Law(
    title="The best learning rate",
    formula="rate = k N^a D^b",
    parameters=(
        Parameter("k", "at one parameter and one token", True, (1.0,)),
        Parameter("a", "exponent of parameters", False, (-0.5,)),
        Parameter("b", "exponent of tokens", False, (0.3,)),
    ),
    needs=("n", "d"),
    terms=(Term("k", (("n", 1.0, "a"), ("d", 1.0, "b"))),),
    response="rate",
    loss="log_mse",
    prepare=near_best,
    references={
        "step_law_2025": Reference(
            {"k": 1.79, "a": -0.713, "b": 0.307},
            "Li et al. 2025, arXiv 2503.04715",
            "read",
            "N without embeddings; bootstrap means",
        )
    },
)
