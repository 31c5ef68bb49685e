"""The best batch by tokens.

Li et al. 2025, "Step Law" (arXiv 2503.04715): the batch in tokens, of the rows within a
quarter of a percent of the lowest loss of every (N, D).
"""

from __future__ import annotations

from scaling_lab.studies.fitting.best import near_best
from scaling_lab.studies.law import Law, Parameter, Reference, Term

LAW = Law(
    title="The best batch",
    formula="batch = k D^b",
    parameters=(
        Parameter("k", "at one token", True, (1.0,)),
        Parameter("b", "exponent of tokens", False, (0.5,)),
    ),
    needs=("d",),
    terms=(Term("k", (("d", 1.0, "b"),)),),
    response="batch",
    loss="log_mse",
    prepare=near_best,
    references={
        "step_law_2025": Reference(
            {"k": 0.58, "b": 0.571},
            "Li et al. 2025, arXiv 2503.04715",
            "read",
            "tokens; bootstrap means",
        )
    },
)
