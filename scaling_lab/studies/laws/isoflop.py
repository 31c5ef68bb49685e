"""Chinchilla's approach 2: an isoFLOP parabola a budget.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2.
"""

from __future__ import annotations

from scaling_lab.studies.fitting.parabolas import isoflop
from scaling_lab.studies.law import Law, Parameter, Reference

LAW = Law(
    title="IsoFLOP parabolas (approach 2)",
    formula=(
        "L = low + bend (log N - log N*)² at each C; N* = n_scale C^a, D* = d_scale C^b"
    ),
    parameters=(
        Parameter("a", "exponent of optimal parameters"),
        Parameter("b", "exponent of optimal tokens"),
        Parameter("n_scale", "optimal parameters of one FLOP", True),
        Parameter("d_scale", "optimal tokens of one FLOP", True),
    ),
    needs=("n", "d", "c"),
    procedure=isoflop,
    references={
        "hoffmann_2022": Reference(
            {"a": 0.49, "b": 0.51},
            "Hoffmann et al. 2022, arXiv 2203.15556, table 2",
            "secondary",
            "a in (0.462, 0.534), b in (0.483, 0.529)",
        ),
        "llama3_2024": Reference(
            {"b": 0.537, "d_scale": 0.299},
            "Llama 3, arXiv 2407.21783, section 3.2",
            "read",
            "0.50 where far points are filtered out first",
        ),
    },
)
