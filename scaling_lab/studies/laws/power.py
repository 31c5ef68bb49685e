"""A power law of one column: a straight line of logarithms."""

from __future__ import annotations

from scaling_lab.studies.law import Law, Parameter, Reference, Term

LAW = Law(
    title="Power law",
    formula="y = k x^a",
    parameters=(
        Parameter("k", "at x = 1", True, (1.0,)),
        Parameter("a", "exponent", False, (-0.3, 0.3)),
    ),
    needs=("x",),
    terms=(Term("k", (("x", 1.0, "a"),)),),
    response="y",
    loss="log_mse",
    references={
        "porian_2024_refinedweb": Reference(
            {"k": 0.1189264839749380, "a": 0.497},
            "Porian et al. 2024, arXiv 2406.19146: optimal parameters by FLOPs, tuned",
            "read",
            "weighted by the optima's spread; .835 with Kaplan's choices",
        ),
        "llama3_2024": Reference(
            {"k": 0.299, "a": 0.537},
            "Llama 3, arXiv 2407.21783, section 3.2: optimal tokens by FLOPs",
            "read",
            "402B parameters and 16.55T tokens at 3.8e25",
        ),
        "deepseek_2024_rate": Reference(
            {"k": 0.3118, "a": -0.1250},
            "DeepSeek LLM, arXiv 2401.02954, equation 1: learning rate by FLOPs",
            "secondary",
        ),
        "deepseek_2024_batch": Reference(
            {"k": 0.2920, "a": 0.3271},
            "DeepSeek LLM, arXiv 2401.02954, equation 1: batch in tokens by FLOPs",
            "secondary",
        ),
    },
)
