"""Fine-grained experts: parameters, tokens and granularity.

Krajewski et al. 2024 (arXiv 2402.07871), equation 9 and table 1: 64 times as many
parameters as a token uses.
"""

from __future__ import annotations

from scaling_lab.studies.law import Law, Parameter, Reference, Term

LAW = Law(
    title="Fine-grained experts",
    formula="L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
    parameters=(
        Parameter("c", "loss of the text itself", True, (0.5, 1.5)),
        Parameter("a", "of parameters", True, (10.0, 100.0)),
        Parameter("g", "of granularity", True, (1.0, 10.0)),
        Parameter("b", "of tokens", True, (10.0, 100.0)),
        Parameter("alpha", "exponent of parameters", False, (0.1, 0.3)),
        Parameter("gamma", "exponent of granularity", False, (0.3, 0.8)),
        Parameter("beta", "exponent of tokens", False, (0.1, 0.3)),
    ),
    needs=("n", "d", "granularity"),
    terms=(
        Term("c"),
        Term("a", (("n", -1.0, "alpha"),)),
        Term("g", (("granularity", -1.0, "gamma"), ("n", -1.0, "alpha"))),
        Term("b", (("d", -1.0, "beta"),)),
    ),
    references={
        "krajewski_2024": Reference(
            {
                "c": 0.47,
                "a": 18.1,
                "g": 2.1,
                "b": 30.8,
                "alpha": 0.115,
                "gamma": 0.58,
                "beta": 0.147,
            },
            "Krajewski et al. 2024, arXiv 2402.07871, table 1",
            "secondary",
            "Huber delta 0.1; expansion 64",
        )
    },
)
