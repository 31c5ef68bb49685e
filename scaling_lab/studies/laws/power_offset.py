"""A power law that ends on a floor."""

from __future__ import annotations

from scaling_lab.studies.law import Law, Parameter, Term

LAW = Law(
    title="Power law with an offset",
    formula="y = E + k x^-a",
    parameters=(
        Parameter("E", "the floor", True, (0.5, 1.0, 2.0)),
        Parameter("k", "at x = 1 above the floor", True, (10.0, 1e3)),
        Parameter("a", "exponent", False, (0.05, 0.2, 0.5)),
    ),
    needs=("x",),
    terms=(Term("E"), Term("k", (("x", -1.0, "a"),))),
    response="y",
    references={},
)
