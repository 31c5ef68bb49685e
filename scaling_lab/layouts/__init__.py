"""Which dim lives on which mesh axis: layouts as data, their legality, their placement.

One file per named layout (`ddp.py`, `fsdp_tensor.py`, …) with its tables written out;
`grammar.parse` reads what people type.
"""

from scaling_lab.layouts.copies import independent
from scaling_lab.layouts.explicit import ExplicitPlacement
from scaling_lab.layouts.grammar import names, parse
from scaling_lab.layouts.legality import check, fit_kv_heads
from scaling_lab.layouts.mesh import make_mesh
from scaling_lab.layouts.placement import Placement, scaled
from scaling_lab.layouts.stage_laws import check_stages, check_turns
from scaling_lab.layouts.stages import (
    alternate,
    alternates,
    fit_stages,
    gathers_by_hand,
    makes_later,
    passes,
    schedule_of,
    stages_of,
    through_stages,
    virtual_of,
    within_stage,
)
from scaling_lab.layouts.tables import IllegalLayout, Layout, Spec

__all__ = [
    "ExplicitPlacement",
    "IllegalLayout",
    "Layout",
    "Placement",
    "Spec",
    "alternate",
    "alternates",
    "check",
    "check_stages",
    "check_turns",
    "fit_kv_heads",
    "fit_stages",
    "gathers_by_hand",
    "independent",
    "make_mesh",
    "makes_later",
    "names",
    "parse",
    "passes",
    "scaled",
    "schedule_of",
    "stages_of",
    "through_stages",
    "virtual_of",
    "within_stage",
]
