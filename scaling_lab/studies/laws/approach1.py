"""Chinchilla's approach 1: the lowest loss at every compute.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1.
"""

from __future__ import annotations

from scaling_lab.studies.fitting.envelope import envelope
from scaling_lab.studies.law import Law, Parameter, Reference

LAW = Law(
    title="The envelope of training curves (approach 1)",
    formula="N* = n_scale C^a of the run lowest at C; D* = C / (6 N*) = d_scale C^b",
    parameters=(
        Parameter("a", "exponent of optimal parameters"),
        Parameter("b", "exponent of optimal tokens: 1 - a"),
        Parameter("n_scale", "optimal parameters of one FLOP", True),
        Parameter("d_scale", "optimal tokens of one FLOP", True),
    ),
    needs=("n", "d", "c"),
    procedure=envelope,
    references={
        "hoffmann_2022": Reference(
            {"a": 0.50, "b": 0.50},
            "Hoffmann et al. 2022, arXiv 2203.15556, table 2",
            "secondary",
            "a in (0.488, 0.502)",
        )
    },
)
