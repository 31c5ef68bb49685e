"""A row of `covering` as a run on eight devices, its measure on one, and how near."""

import dataclasses
from typing import NamedTuple

from contracts.training import ADAMW, run_of
from scaling_lab import models
from scaling_lab.layouts import Layout
from scaling_lab.parallel.low_precision import RECIPES
from scaling_lab.parallel.masks import Blocks
from scaling_lab.parallel.sight import Sight

BATCH = 32
#: Of blocks of 4 their own, the one before, the first and the third; a row has 8.
MAP = Blocks.of(4, [[j in (i, i - 1, 0, 2) for j in range(8)] for i in range(8)])
#: Weights that losses of experts are seen by; a capacity of 1.25 drops some tokens, the
#: same wherever they are.
SEEN = "balance=0.02,z=0.01,capacity=1.25"
#: Of a router's bias, whose steps are of one size: a token may turn some of them.
TURNED = 0.7
#: Factor -> how near a value of it comes to one device that does the same. Of norms,
#: relatively; noise is what a gradient of nothing comes to.
NEAR = {
    # Sums round to 8 bits, otherwise in every order, and a token between two experts
    # may turn to the other one.
    "precision": {
        "bfloat16": {"loss": 1e-2, "gradient": 2e-1, "update": 2e-1, "noise": 5e-4},
        # All but the codes in float32: one between two may fall to either.
        **dict.fromkeys(
            RECIPES, {"loss": 1e-3, "gradient": 5e-2, "update": 1e-1, "heads": 2e-1}
        ),
    },
    # A number in thousands falls to the other side by chance.
    "parameters": {"bfloat16": {"loss": 2e-4, "gradient": 1e-2, "update": 3e-2}},
    "moments": {"bfloat16": {"update": 1e-2}, "int8": {"update": 2e-2}},
    # One device has nothing to sum.
    "reduce": {"bfloat16": {"loss": 2e-4, "gradient": 1e-2, "update": 5e-2}},
}


def model_of(name, mask, routing, tiny):
    """Four layers. Gemma 3's are local, and their windows cut a row; DeepSeek's second
    head, which is long to compile, is for `test_combinations`.
    """
    changes = {"gemma3": {"window": 12, "period": 8}, "deepseek": {"further": 0.0}}
    model = tiny(name, L=4, **changes.get(name, {}))
    if routing != "none":
        # DeepSeek's own has groups and a bias, of which nobody else knows.
        plain = hasattr(model, "biased") and "bias" not in routing
        less = ",groups=1,bias=no" if plain else ""
        model = models.routed(model, f"{SEEN},{routing}{less}")
    if mask == "causal":
        return model
    known = Sight(blocks=MAP) if mask == "blocks" else Sight.parse(mask)
    return models.seeing(model, known)


class Case(NamedTuple):
    """A row as it is trained."""

    model: str
    layout: str
    remat: str = "none"
    stack: str = "auto"
    accumulate: int = 4
    axis_type: str = "auto"
    mask: str = "causal"
    routing: str = "none"
    precision: str = "float32"
    parameters: str = "float32"
    moments: str = "float32"
    reduce: str = "none"

    @classmethod
    def read(cls, names, line):
        said = dict(zip(names.split(), line.split(), strict=True))
        return cls(**said | {"accumulate": int(said["accumulate"])})

    def config(self, tiny):
        """The case as a run; raises where it cannot be."""
        fields = self._asdict()
        model = model_of(*(fields.pop(f) for f in ("model", "mask", "routing")), tiny)
        own = dataclasses.replace(ADAMW, moments=fields.pop("moments"))
        reduce = fields.pop("reduce")
        fields |= {"reduce": None if reduce == "none" else reduce, "optimizer": own}
        return run_of(model, fields.pop("layout"), batch=BATCH, **fields)

    def measure(self):
        """What one device must know, as a case of it.

        Experts have losses of a microbatch, and sums of bfloat16 round at each.
        """
        split = self.routing != "none" or self.parameters == "bfloat16"
        return self._replace(
            layout="+capacity" if "+capacity" in self.layout else "",
            remat="none",
            stack="scan",
            accumulate=self.accumulate if split else 1,
            axis_type="auto",
            reduce="none",
        )

    def alone(self, tiny):
        """A measure as a run on one device, told to drop what its cases drop."""
        bind = {"experts": "capacity"} if self.layout else None
        return self._replace(layout=Layout({}, bind=bind)).config(tiny)

    def exact(self):
        """The same where only the order of float32's sums differs from one device."""
        plain = {factor: self._field_defaults[factor] for factor in NEAR}
        return self._replace(**plain)

    def near(self):
        """How near to one device it must come, as `same` takes it."""
        found = {} if self == self.exact() else {"turned": TURNED}
        for factor, values in NEAR.items():
            for name, bound in values.get(getattr(self, factor), {}).items():
                found[name] = max(bound, found.get(name, 0.0))
        return found
