"""Many runs for one question: a grid of configs, one process each, one record each.

`run_here` runs a config in this process; `sweep` runs many, each in a process of its
own, resumes where it stopped, and never lets one failure end the rest; `run_branches`
trains runs that differ in length along one trunk; `run_training` is a long run with
evaluation, checkpoints and a sample; `compile_run` runs nothing and asks the target's
compiler, and `compile_step` asks it about any function.
"""

from scaling_lab.sweep.any_step import compile_step, target_mesh
from scaling_lab.sweep.branches import run_branches
from scaling_lab.sweep.compiling import compile_only, compile_run
from scaling_lab.sweep.driver import Summary, sweep
from scaling_lab.sweep.grid import estimate_seconds, grid
from scaling_lab.sweep.long_run import LongRun, Trained, run_training
from scaling_lab.sweep.run import run_here

__all__ = [
    "LongRun",
    "Summary",
    "Trained",
    "compile_only",
    "compile_run",
    "compile_step",
    "estimate_seconds",
    "grid",
    "run_branches",
    "run_here",
    "run_training",
    "sweep",
    "target_mesh",
]
