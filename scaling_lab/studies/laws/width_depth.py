"""Width and depth beside parameters and tokens.

McLeish et al. 2025, "Gemstones" (arXiv 2502.06857): Chinchilla's form with a power each
of width, depth, parameters and tokens, fitted by Huber loss with delta 1e-4.
"""

from __future__ import annotations

from scaling_lab.studies.law import Law, Parameter, Term

LAW = Law(
    title="Width and depth beside parameters and tokens",
    formula="L = E + A / W^alpha + B / L^beta + G / N^gamma + H / D^zeta",
    parameters=(
        Parameter("E", "loss of the text itself", True, (1.0, 2.0)),
        Parameter("A", "of width", True, (1.0, 100.0)),
        Parameter("B", "of depth", True, (1.0, 100.0)),
        Parameter("G", "of parameters", True, (10.0, 1e3)),
        Parameter("H", "of tokens", True, (1e3, 1e5)),
        Parameter("alpha", "exponent of width", False, (0.5, 1.5)),
        Parameter("beta", "exponent of depth", False, (0.5, 1.5)),
        Parameter("gamma", "exponent of parameters", False, (0.25, 0.6)),
        Parameter("zeta", "exponent of tokens", False, (0.3, 0.6)),
    ),
    needs=("width", "depth", "n", "d"),
    terms=(
        Term("E"),
        Term("A", (("width", -1.0, "alpha"),)),
        Term("B", (("depth", -1.0, "beta"),)),
        Term("G", (("n", -1.0, "gamma"),)),
        Term("H", (("d", -1.0, "zeta"),)),
    ),
    delta=1e-4,
    references={},
)
