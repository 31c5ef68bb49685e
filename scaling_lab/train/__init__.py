"""Training: state already in place, one jitted step, and the loop around it.

`make_program` turns a config into a `Program`; `fit` runs it over batches.
"""

from scaling_lab.train.loop import NotFinite, bits_per_byte, check_finite, fit
from scaling_lab.train.program import Program, make_placement, make_program
from scaling_lab.train.sample import check_room, generate
from scaling_lab.train.step import TrainState, make_train_step

__all__ = [
    "NotFinite",
    "Program",
    "TrainState",
    "bits_per_byte",
    "check_finite",
    "check_room",
    "fit",
    "generate",
    "make_placement",
    "make_program",
    "make_train_step",
]
