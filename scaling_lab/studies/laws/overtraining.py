"""Over-training: loss by compute and by tokens per parameter.

Gadre et al. 2024 (arXiv 2403.08540), equation 4. Fitted there by least squares of the
loss itself on five small runs: ``--loss mse --solver projection``, the default here.
"""

from __future__ import annotations

from collections.abc import Mapping

from scaling_lab.studies.law import Law, Parameter, Path, Reference, Term


def path(values: Mapping[str, float]) -> Path:
    """The best tokens per parameter are the same at every compute."""
    ratio = (values["b"] / values["a"]) ** (0.5 / values["eta"])
    return Path(0.5, 0.5, (6 * ratio) ** -0.5, (ratio / 6) ** 0.5)


def _published(where: str, E: float, a: float, b: float, eta: float) -> Reference:
    return Reference(
        {"E": E, "a": a, "b": b, "eta": eta},
        f"Gadre et al. 2024, arXiv 2403.08540, table of fits, {where}",
        "read",
        "loss on C4's validation set; C = 6 ND; five runs of 11M to 411M parameters",
    )


LAW = Law(
    title="Over-training: compute and tokens per parameter",
    formula="L = E + (a M^eta + b M^-eta) C^-eta, M = D / N",
    parameters=(
        Parameter("E", "loss of the text itself", True, (0.5, 1.0, 2.0)),
        Parameter("a", "of too many tokens", True, (50.0, 500.0)),
        Parameter("b", "of too few tokens", True, (50.0, 500.0)),
        Parameter("eta", "exponent of compute", False, (0.05, 0.12, 0.3)),
    ),
    needs=("n", "d", "c", "ratio"),
    terms=(
        Term("E"),
        Term("a", (("ratio", 1.0, "eta"), ("c", -1.0, "eta"))),
        Term("b", (("ratio", -1.0, "eta"), ("c", -1.0, "eta"))),
    ),
    loss="mse",
    path=path,
    references={
        "gadre_2024_c4": _published("C4", 1.51, 141, 190, 0.121),
        "gadre_2024_redpajama": _published("RedPajama", 1.84, 212, 367, 0.136),
        "gadre_2024_refinedweb": _published("RefinedWeb", 1.73, 157, 246, 0.127),
    },
)
