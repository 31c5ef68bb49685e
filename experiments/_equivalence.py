"""What `layout_equivalence` trains: families, layouts, routings, arithmetic."""

import dataclasses
from typing import Any, NamedTuple

import scaling_lab as lab
from scaling_lab import models
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.parallel.verbs import Routing

DENSE = ("llama", "gpt2", "qwen3", "gemma3")
ROUTED = ("mixtral", "qwen3_moe", "deepseek")
#: For every family: layout, remat, microbatches.
LAYOUTS = [
    ("data=8", "none", 1),
    ("data=8+zero1", "none", 1),
    ("data=8+zero2", "full", 4),
    ("fsdp=8", "full", 4),
    ("fsdp=8+gather_once", "none", 1),
    ("data=2,fsdp=4", "save:attention/attend", 1),
    ("data=2,tensor=4", "none", 1),
    ("fsdp=4,tensor=2", "full", 1),
    ("fsdp=4,tensor=2+sequence", "none", 4),
    ("data=2,context=4", "none", 1),
    ("fsdp=2,context=4+ring", "full", 1),
    ("fsdp=2,context=4+ulysses", "none", 4),
    ("fsdp=2,context=2,tensor=2+sequence+ring", "none", 1),
    ("stage=2,fsdp=4", "full", 4),
    ("stage=2,data=2,tensor=2+sequence", "none", 4),
    ("stage=2,fsdp=2,context=2+ring", "full", 4),
    ("stage=2,fsdp=4+interleaved=2", "full", 4),
    ("fsdp=4,tensor=2+offload_optimizer", "none", 1),
    ("data=8+zero1+offload_optimizer", "full", 4),
]
#: Where most layers are of one kind.
ALIKE = ("llama", "gpt2", "qwen3", "mixtral", "qwen3_moe", "deepseek")
ALTERNATING = [
    ("stage=2,fsdp=4+1f1b", "full", 4),
    ("stage=2,fsdp=4+zero_bubble", "full", 4),
]
#: For those that have experts.
OF_EXPERTS = [
    ("expert=8", "none", 1),
    ("expert=4,fsdp=2", "full", 4),
    ("expert=4,fsdp=2+ring_of_experts", "none", 1),
    ("expert=4,fsdp=2+capacity", "none", 1),
    ("fsdp=8+capacity", "full", 4),
    ("expert=2,fsdp=2,tensor=2", "none", 1),
    ("expert=2,fsdp=2,context=2+ring", "none", 1),
    ("stage=2,expert=2,fsdp=2", "full", 4),
]
#: How tokens find experts, beside each family's own.
ROUTINGS = ("gate=softmax", "gate=sigmoid", "gate=softmax,choice=expert")
#: Layouts that every arithmetic is tried under; the last for families with experts.
FEW = [
    ("data=8+zero2", "full", 4),
    ("fsdp=4,tensor=2+sequence", "none", 4),
    ("fsdp=2,context=4+ring", "full", 1),
    ("stage=2,fsdp=4", "full", 4),
    ("expert=4,fsdp=2", "full", 4),
]


class Mode(NamedTuple):
    """An arithmetic, and how near to one device that does the same it must come.

    Attributes:
      run: fields of the config. moments: of the optimizer's.
      loss, gradient, update: relative differences.
      noise: share of the whole that a gradient of nothing comes to.
    """

    run: dict[str, str]
    moments: str = "float32"
    loss: float = 1e-5
    gradient: float = 1e-4
    update: float = 1e-3
    noise: float = 1e-6

    @property
    def exact(self) -> bool:
        """Whether nothing but the order of sums differs."""
        return self.loss <= 1e-5


#: In float32 only the order of sums differs. In bfloat16 they round to 8 bits, and a
#: code of 8 bits that lies between two may fall to either, as may what chance rounds.
MODES = {
    "float32": Mode({}),
    "bfloat16": Mode({"precision": "bfloat16"}, "float32", 1e-2, 1e-1, 2e-1, 1e-4),
    "int8": Mode({"precision": "int8"}, "float32", 1e-2, 1e-1, 2e-1, 1e-4),
    "float8": Mode({"precision": "float8"}, "float32", 1e-2, 1e-1, 2e-1, 1e-4),
    "parameters bfloat16": Mode(
        {"parameters": "bfloat16"}, "float32", 2e-4, 5e-3, 3e-2
    ),
    "moments bfloat16": Mode({}, "bfloat16", update=1e-2),
    "moments int8": Mode({}, "int8", update=2e-2),
    "sums bfloat16": Mode({"reduce": "bfloat16"}, "float32", 1e-3, 1e-2, 5e-2),
    "sums float32": Mode(
        {"precision": "bfloat16", "reduce": "float32"},
        "float32",
        1e-2,
        1e-1,
        2e-1,
        1e-4,
    ),
}


class Case(NamedTuple):
    """A row of the answer."""

    family: str
    layout: str
    remat: str
    accumulate: int
    routing: str = ""
    mode: str = "float32"

    @property
    def parts(self) -> int:
        """Microbatches of the one device: experts have losses of each, and sums of
        bfloat16 round at each."""
        split = self.family in ROUTED or self.mode == "parameters bfloat16"
        return self.accumulate if split else 1


#: Divisible wherever a layout divides, and nothing more.
TINY = {"L": 4, "D": 64, "N": 8, "K": 4, "H": 8, "F": 128, "V": 256, "E": 8}
B1 = 0.9
#: A large epsilon keeps AdamW from magnifying the rounding of gradients near zero.
ADAMW = OptimizerConfig(b1=B1, epsilon=1e-4, learning_rate=1e-2, warmup=1, clip=None)


def model_of(case: Case) -> Any:
    """The smallest of a family: windows cut a row, and capacity drops tokens."""
    family = case.family
    toy = lab.model(family, "toy")
    sizes = TINY if toy.K < toy.N else TINY | {"K": TINY["N"]}
    changes = {letter: n for letter, n in sizes.items() if hasattr(toy, letter)}
    if family == "gemma3":
        changes |= {"window": 12}
    if family == "deepseek":
        # Stages alternate over the last kind of layers, which wants most of them.
        turns = case.layout.endswith(("1f1b", "zero_bubble"))
        changes |= {"L": 8, "dense": 2 if turns else 4}
    elif family in ROUTED:
        changes |= {"routing": Routing(top_k=2, balance=0.02, z=0.01)}
    model = dataclasses.replace(toy, **changes)
    if not case.routing:
        return model
    plain = ",groups=1,bias=no" if family == "deepseek" else ""
    return models.routed(model, case.routing + plain)


def config_of(case: Case) -> lab.RunConfig:
    """A case: three steps of 32 sequences of 32 tokens."""
    mode = MODES[case.mode]
    return dataclasses.replace(
        lab.configure(case.family, "toy", case.layout, "cpu:8", steps=3),
        model=model_of(case),
        optimizer=dataclasses.replace(ADAMW, moments=mode.moments),
        **{"batch": 32, "length": 32, "remat": case.remat},
        **{"accumulate": case.accumulate, **mode.run},
    )


def cases() -> list[Case]:
    """All of them, layout by layout, so that what is there early is of every family.

    Those of the family's own routing in float32 come first.
    """
    found = [Case(family, *case) for case in LAYOUTS for family in DENSE + ROUTED]
    found += [Case(family, *case) for case in ALTERNATING for family in ALIKE]
    found += [Case(family, *case) for case in OF_EXPERTS for family in ROUTED]
    found += [
        Case(family, *case, routing)
        for case in OF_EXPERTS
        for routing in ROUTINGS
        for family in ROUTED
        # Softmax is the others' own, and experts that choose have a full queue.
        if family == "deepseek" or routing != ROUTINGS[0]
        if not ("choice" in routing and "+capacity" in case[0])
    ]
    found += [
        Case(family, *case, mode=mode)
        for mode in list(MODES)[1:]
        for case in FEW
        for family in (ROUTED if "expert" in case[0] else DENSE + ROUTED)
    ]
    return found
