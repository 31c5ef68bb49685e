"""How should this transformer be laid out on that machine, and what will it cost?

One question, answered at three levels kept apart in one record: *predicted* on paper,
*compiled* by the real compiler, *measured* by the clock. The letters name the dims, the
equation states the placement, the imports point down, the record tells what happened.

The names below are what every command of ``scaling-lab`` does, as calls:

>>> import scaling_lab as lab
>>> config = lab.configure("llama", "toy", "fsdp=4,tensor=2+sequence", "cpu:8")
>>> lab.explain(config).bytes_by()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling_lab.config import RunConfig as RunConfig
    from scaling_lab.config import configure as configure
    from scaling_lab.cost import explain as explain
    from scaling_lab.layouts import Layout as Layout
    from scaling_lab.layouts import names as layout_names
    from scaling_lab.models import size as model
    from scaling_lab.plan import best_layouts as best_layouts
    from scaling_lab.studies import frame as records
    from scaling_lab.studies import report as report
    from scaling_lab.studies.fitting import fit as fit
    from scaling_lab.sweep import compile_run as compile_run
    from scaling_lab.sweep import compile_step as compile_step
    from scaling_lab.sweep import grid as grid
    from scaling_lab.sweep import run_here as run
    from scaling_lab.sweep import run_training as run_training
    from scaling_lab.sweep import sweep as run_sweep
    from scaling_lab.sweep import target_mesh as target_mesh

#: Public name -> (room, name there). Imported when first used, so that records can be
#: read and reports written without jax.
_DOOR = {
    "Layout": ("layouts", "Layout"),
    "RunConfig": ("config", "RunConfig"),
    "best_layouts": ("plan", "best_layouts"),
    "compile_run": ("sweep", "compile_run"),
    "compile_step": ("sweep", "compile_step"),
    "configure": ("config", "configure"),
    "explain": ("cost", "explain"),
    "fit": ("studies.fitting", "fit"),
    "grid": ("sweep", "grid"),
    "layout_names": ("layouts", "names"),
    "model": ("models", "size"),
    "records": ("studies", "frame"),
    "report": ("studies", "report"),
    "run": ("sweep", "run_here"),
    "run_sweep": ("sweep", "sweep"),
    "run_training": ("sweep", "run_training"),
    "target_mesh": ("sweep", "target_mesh"),
}

__all__ = [
    "Layout",
    "RunConfig",
    "best_layouts",
    "compile_run",
    "compile_step",
    "configure",
    "explain",
    "fit",
    "grid",
    "layout_names",
    "model",
    "records",
    "report",
    "run",
    "run_sweep",
    "run_training",
    "target_mesh",
]


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room, there = _DOOR[name]
    return getattr(importlib.import_module(f"scaling_lab.{room}"), there)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
