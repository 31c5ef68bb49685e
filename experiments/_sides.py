"""The sides of `the_thirty_percent`: what each is offered at a point, by rule."""

import dataclasses
from typing import Any

import numpy as np

import scaling_lab as lab
from scaling_lab import models, plan
from scaling_lab.cost.memory import memory
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.hardware import parse_target
from scaling_lab.plan import candidates, refine

#: family, size, targets. A chip takes two sequences of 4096, or one of 2048.
MODELS = (
    ("llama", "8b", ("tpu-v5p:4x4x4", "h100:8x8")),
    ("llama", "70b", ("tpu-v5p:4x8x8", "h100:32x8")),
    ("mixtral", "8x7b", ("tpu-v5p:4x4x8", "h100:16x8")),
)
LOADS = {"8k": (2, 4096), "2k": (1, 2048)}
#: Policies of a tuned layout that the compiler is asked about: of FSDP, of HSDP.
TUNED, TUNED_APART = 2, 1
#: Of the planner's best layouts so many, and of the best of them so many more policies.
LAYOUTS, POLICIES = 4, 4
#: Of the compiled ones so many of the fastest, each on other axes, are changed further.
LEADERS = 2
#: Layers that are written out at most: of more the scheduler loses sight of memory.
WRITTEN_OUT = 40
NO_PIPELINE = ("data", "expert", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class Point:
    """A model on a machine under a load."""

    family: str
    size: str
    target: str
    load: str

    @property
    def said(self) -> str:
        """How it is called: ``llama-8b h100:8x8 8k``."""
        return f"{self.family}-{self.size} {self.target} {self.load}"

    @property
    def question(self) -> plan.Question:
        """What the planner is asked."""
        machine = parse_target(self.target)
        sequences, length = LOADS[self.load]
        batch = sequences * (machine.chips or 1)
        shape = plan.of_config(models.size(self.family, self.size))
        return plan.Question(shape, machine, batch, length, axes=NO_PIPELINE)

    def config(self, layout: str, remat: str, **more: Any) -> lab.RunConfig:
        """A run at this point."""
        question = self.question
        words = {"batch": question.batch, "length": question.length, "remat": remat}
        return lab.configure(
            self.family, self.size, layout, self.target, **words, **more
        )


POINTS = [
    Point(family, size, target, load)
    for family, size, targets in MODELS
    for target in targets
    for load in LOADS
]


def naive(point: Point) -> lab.RunConfig:
    """FSDP over all devices, everything made again."""
    return point.config(f"fsdp={point.question.devices}", "full")


def tuned(point: Point) -> list[lab.RunConfig]:
    """FSDP with its best policies, and HSDP with a replica a node or as large."""
    question = point.question
    devices = question.devices
    chip = question.target.chip
    apart = 4 if chip.torus_dims else devices // chip.scale_up_chips
    layouts = [f"fsdp={devices}"]
    layouts.append(f"data={apart},fsdp={devices // apart}")
    found = []
    for layout in layouts:
        offered = [
            point.config(layout, candidates.policy_of(question, code), accumulate=parts)
            for code in range(len(candidates.POLICIES))
            for parts in (1, 2)
            if question.batch // devices % parts == 0
        ]
        count = TUNED_APART if found else TUNED
        found += _predicted_best(question, offered)[:count]
    return found


def _predicted_best(
    question: plan.Question, configs: list[lab.RunConfig]
) -> list[lab.RunConfig]:
    """Those that fit, the predicted fastest first; of one policy the best alone."""
    points = points_of(configs)
    held = memory(points).hbm_bytes
    seconds = predict(points).step_seconds
    order = [i for i in np.argsort(seconds) if held[i] <= question.limit_bytes]
    best: dict[str, lab.RunConfig] = {}
    for i in order:
        best.setdefault(configs[i].remat, configs[i])
    return list(best.values())


def layouts(point: Point) -> list[list[lab.RunConfig]]:
    """The planner's layouts, no two over the same axes, each with its policies.

    Of every kind of policy (`plan.refine`) the best, the predicted fastest first. A
    chip's flags ``ahead`` or ``overlap`` change no program, only how early its
    collectives start and how much memory beside the units a product may use.
    """
    flags = point.question.target.chip.flags
    ahead = flags.get("ahead", flags.get("overlap", ""))
    plans = plan.plan(point.question, top=10_000)
    kinds: dict[tuple[str, ...], plan.Choice] = {}
    for choice in plans.choices:
        if choice.trained:
            kinds.setdefault(tuple(choice.mesh), choice)
    return [
        [
            dataclasses.replace(
                each.of(plan.config_of(point.question, choice)), xla_flags=ahead
            )
            for each in refine.policies(plans, choice, 1)[: 1 + POLICIES]
        ]
        for choice in list(kinds.values())[:LAYOUTS]
    ]


def changes(point: Point) -> dict[str, dict[str, Any]]:
    """What is tried on the best of them, one after the other, and kept if no slower.

    Every named set of the chip's flags; two layers in a turn of their loop, so that
    one's weights come while the other computes; and layers written out, which spares
    the copies of a loop's results. A TPU's compiler takes too long over them.
    """
    question = point.question
    chip = question.target.chip
    found = {f"flags: {name}": {"xla_flags": chip.flags[name]} for name in chip.flags}
    if question.shape.layers % 2 == 0:
        found["two layers a turn"] = {"stack": "scan:2"}
    if chip.compiler == "gpu" and question.shape.layers <= WRITTEN_OUT:
        found["layers written out"] = {"stack": "unroll"}
    return found


def steps(config: lab.RunConfig, first: lab.RunConfig) -> dict[str, lab.RunConfig]:
    """From naive to a config, one thing after the other; what changes nothing is left
    out."""
    here = config.remat.partition(";")[0]
    words = {"accumulate": config.accumulate, "remat": config.remat}
    under = dataclasses.replace(first, **words)
    every = {
        "naive": first,
        "saved by name": dataclasses.replace(under, remat=here),
        "host's memory": under,
        "layout": dataclasses.replace(under, layout=config.layout),
        "flags": dataclasses.replace(config, stack=first.stack),
        "layers of a turn": config,
    }
    found: dict[str, lab.RunConfig] = {}
    for name, each in every.items():
        if each.id not in {other.id for other in found.values()}:
            found[name] = each
    return found
