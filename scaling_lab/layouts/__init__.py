"""Which dim lives on which mesh axis: layouts as data, their legality, their placement.

One file per named layout (`ddp.py`, `fsdp_tensor.py`, …) with its tables written out;
`grammar.parse` reads what people type.
"""

from scaling_lab.layouts.explicit import ExplicitPlacement
from scaling_lab.layouts.grammar import names, parse
from scaling_lab.layouts.legality import check, fit_kv_heads
from scaling_lab.layouts.mesh import make_mesh
from scaling_lab.layouts.placement import Placement
from scaling_lab.layouts.stages import (
    alternate,
    alternates,
    check_stages,
    fit_stages,
    passes,
    stages_of,
    virtual_of,
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
    "fit_kv_heads",
    "fit_stages",
    "make_mesh",
    "names",
    "parse",
    "passes",
    "stages_of",
    "virtual_of",
]
