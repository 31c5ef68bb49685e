"""Sparsity of experts: which share of the parameters a token should use.

Abnar et al. 2025 (arXiv 2501.12370), equation 6. ``active`` is 1 - S; their S counts
experts that are idle.
"""

from __future__ import annotations

from scaling_lab.studies.law import Law, Parameter, Reference, Term

LAW = Law(
    title="Sparsity: parameters, tokens and the share in use",
    formula=(
        "L = e + a / N^alpha + b / D^beta + c / (1 - S)^lambda"
        " + d / ((1 - S)^delta N^gamma)"
    ),
    parameters=(
        Parameter("e", "loss of the text itself", True, (0.9, 1.5)),
        Parameter("a", "of parameters", True, (1e3, 1e4)),
        Parameter("b", "of tokens", True, (1e3, 1e4)),
        Parameter("c", "of the share in use", True, (0.1, 0.5)),
        Parameter("d", "of parameters in use", True, (10.0, 30.0)),
        Parameter("alpha", "exponent of parameters", False, (0.4, 0.6)),
        Parameter("beta", "exponent of tokens", False, (0.3, 0.4)),
        Parameter("lambda", "exponent of the share", False, (-0.2, 0.1)),
        Parameter("delta", "the share's exponent beside parameters", False, (0.15,)),
        Parameter("gamma", "exponent of parameters in use", False, (0.15,)),
    ),
    needs=("n", "d", "active"),
    terms=(
        Term("e"),
        Term("a", (("n", -1.0, "alpha"),)),
        Term("b", (("d", -1.0, "beta"),)),
        Term("c", (("active", -1.0, "lambda"),)),
        Term("d", (("active", -1.0, "delta"), ("n", -1.0, "gamma"))),
    ),
    references={
        "abnar_2025": Reference(
            {
                "e": 0.94,
                "a": 16612.50,
                "b": 5455.67,
                "c": 0.4598,
                "d": 17.26,
                "alpha": 0.5962,
                "beta": 0.3954,
                "lambda": -0.1666,
                "delta": 0.1603,
                "gamma": 0.1595,
            },
            "Abnar et al. 2025, arXiv 2501.12370, table 3",
            "secondary",
            "ten parameters: 99 % of the variance fitted, 68 % at a sparsity held out",
        )
    },
)
