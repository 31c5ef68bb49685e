"""Predicted: what arithmetic says before anything is compiled.

`ledger.record` lists what a model does, verb by verb; `flops` counts it in every named
convention; `explain` says where everything lives and what must cross the wires. No
family has a formula of its own.
"""

from scaling_lab.cost.explain import Explanation, explain
from scaling_lab.cost.flops import (
    executed_per_token,
    multiplied_parameters,
    parameters,
    per_token,
)
from scaling_lab.cost.ledger import Entry, Ledger, record

__all__ = [
    "Entry",
    "Explanation",
    "Ledger",
    "executed_per_token",
    "explain",
    "multiplied_parameters",
    "parameters",
    "per_token",
    "record",
]
