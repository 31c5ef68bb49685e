"""Search: enumerate, prune by law, rank by prediction, confirm by compilation.

`ask` makes a `Question` of words and `plan` answers it; `sizes` answers its
neighbours: the smallest machine, the largest batch, a budget of chip-hours.
"""

from scaling_lab.plan import reasons as reasons
from scaling_lab.plan import refine as refine
from scaling_lab.plan import sizes as sizes
from scaling_lab.plan.answer import Choice, Plan, plan
from scaling_lab.plan.ask import ask, best_layouts
from scaling_lab.plan.confirm import cannot_compile, config_of, confirm
from scaling_lab.plan.question import Question, sequences
from scaling_lab.plan.refine import refined
from scaling_lab.plan.shape import Shape, of_config, read
from scaling_lab.plan.sizes import Best, for_budget, largest_batch, smallest_machine

__all__ = [
    "Best",
    "Choice",
    "Plan",
    "Question",
    "Shape",
    "ask",
    "best_layouts",
    "cannot_compile",
    "config_of",
    "confirm",
    "for_budget",
    "largest_batch",
    "of_config",
    "plan",
    "read",
    "refined",
    "sequences",
    "smallest_machine",
]
