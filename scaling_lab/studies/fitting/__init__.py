"""Fitting scaling laws: two solvers, intervals, and what the points cannot tell."""

from scaling_lab.studies.fitting.fit import fit
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.result import Fit

__all__ = ["Fit", "Options", "fit"]
