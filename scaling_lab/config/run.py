"""RunConfig: one run, complete, frozen and hashed."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from scaling_lab import dims, models, record
from scaling_lab.config import mup
from scaling_lab.data import DataConfig
from scaling_lab.hardware import Target, parse_target
from scaling_lab.layouts import Layout, fit_kv_heads, fit_stages
from scaling_lab.models.ops import RopeScaling
from scaling_lab.names import one_of
from scaling_lab.optimizers import OptimizerConfig, resting
from scaling_lab.parallel.low_precision import RECIPES
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Routing

#: Of the hash; raised only when old configs would mean something else.
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that changes a run's result, as values.

    Attributes:
      model: a family's `Config`.
      layout: where everything lives.
      target: the machine, as `hardware.parse_target` reads it; ``local`` is this one.
      batch: global, in sequences. length: tokens per sequence.
      steps: optimizer steps. seed: of parameters and of the data's order.
      remat: ``none``, ``full``, ``save:VERB,…``, ``recompute:VERB,…`` or, to the host,
        ``offload:VERB,…``; see `parallel.policies`.
      precision: dtype of arithmetic.
        ``int8`` and ``float8`` (``fp8``) multiply weights in 8 bits, see
        `parallel.low_precision`; the rest is bfloat16.
      parameters: dtype that matrices and their gradients rest in; in bfloat16 updates
        are rounded by chance, see `optimizers.rounding`. Updates are made in float32.
      reduce: dtype that gradients of matrices are summed over devices in; ``None`` is
        that of arithmetic.
      accumulate: microbatches per step, one after another.
      stack: layers scanned (``scan:4``, four in a turn), unrolled, or whichever suits
        the backend.
      axis_type: of the mesh; ``explicit`` is JAX's sharding in types.
      z_loss: weight of the squared log-normaliser (PaLM, section 5).
      loss_chunks: chunks of the vocabulary the loss is cut into; ``None`` decides.
      evaluate_batches: held-out batches in an evaluation; 0 never evaluates.
      xla_flags: set before the run's process starts JAX.
      mup: the model at the sizes its learning rate was tuned at, as a `Config` of the
        same family; ``None`` is the standard parametrisation. See `config.mup`.
      size: what people call the model; not part of the identity.
    """

    model: Any
    layout: Layout
    target: str = "local"
    batch: int = 8
    length: int = 256
    steps: int = 20
    seed: int = 0
    remat: str = "none"
    precision: str = "float32"
    parameters: str = "float32"
    reduce: str | None = None
    accumulate: int = 1
    stack: str = "auto"
    axis_type: str = "auto"
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    z_loss: float = 0.0
    loss_chunks: int | None = None
    evaluate_batches: int = 4
    xla_flags: str = ""
    mup: Any = None
    size: str = ""

    def __post_init__(self) -> None:
        if self.precision == "fp8":
            object.__setattr__(self, "precision", "float8")

    @property
    def arithmetic(self) -> str:
        """The dtype of all that is not multiplied in 8 bits."""
        return "bfloat16" if self.precision in RECIPES else self.precision

    @property
    def family(self) -> str:
        """The name of the model's family."""
        return type(self.model).__module__.rpartition(".")[2]

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a global batch."""
        return self.batch * self.length

    @property
    def dim_sizes(self) -> dict[str, int]:
        """Letter -> size, of the model and of one microbatch."""
        return {
            **dims.sizes(self.model),
            "B": self.batch // self.accumulate,
            "T": self.length,
        }

    @functools.cached_property
    def placed_layout(self) -> Layout:
        """The layout after the exceptions for few key-value heads and for stages."""
        layout = fit_kv_heads(self.layout, self.dim_sizes)
        return fit_stages(layout, self.depths, self.model.V)

    @property
    def depths(self) -> list[int]:
        """Layers of every stack of parameters that the model has."""
        leaves = dims.leaves(self.abstract_params).items()
        names = [(path.rpartition("/")[2], leaf.shape) for path, leaf in leaves]
        found = {s[0] for n, s in names if dims.letters(n).startswith("L")}
        return sorted(found)

    @functools.cached_property
    def abstract_params(self) -> dict[str, Any]:
        """Shapes and dtypes of the parameters; nothing is allocated."""
        return dict(_abstract_params(self.model, self.parameters, self.mup))

    def initial(self, key: jax.Array) -> dict[str, Any]:
        """The parameters that a run begins with, as they rest."""
        return _initial(self.model, self.parameters, self.mup, key)

    @property
    def id(self) -> str:
        """The run's id: a hash of the non-default fields and the schema's version."""
        return record.digest({"schema": SCHEMA, **self.to_json(identity=True)})

    def to_json(self, *, identity: bool = False) -> dict[str, Any]:
        """The non-default fields as plain JSON, so a new default orphans no run."""
        data = _non_default(self)
        data["model"] = {"family": self.family, **_non_default(self.model)}
        if self.mup is not None:
            data["mup"] = _non_default(self.mup)
        data["layout"] = self.layout.to_json()
        if identity:
            data.pop("size", None)
            data["layout"].pop("name", None)
        return json.loads(json.dumps(data))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_json`.

        Raises:
          ValueError: an unknown field, with the nearest that are known.
        """
        data = dict(data)
        model = dict(data.pop("model"))
        family = models.family(model.pop("family"))
        fields: dict[str, Any] = {
            "model": _model(family, model),
            "layout": Layout.from_json(data.pop("layout")),
        }
        if data.get("mup") is not None:
            fields["mup"] = _model(family, dict(data.pop("mup")))
        if "optimizer" in data:
            fields["optimizer"] = _build(OptimizerConfig, data.pop("optimizer"))
        if "data" in data:
            source = dict(data.pop("data"))
            if "source" in source:
                source["source"] = tuple(source["source"])
            fields["data"] = _build(DataConfig, source)
        return _build(cls, {**data, **fields})

    def parsed_target(self) -> Target:
        """The target, read.

        Raises:
          ValueError: unknown chip or topology.
        """
        return parse_target(self.target)


@functools.lru_cache(maxsize=32)
def _abstract_params(model: Any, parameters: str, base: Any) -> dict[str, Any]:
    # The key too is traced: a concrete one would start JAX's devices.
    return jax.eval_shape(lambda: _initial(model, parameters, base, jax.random.key(0)))


def _initial(model: Any, parameters: str, base: Any, key: jax.Array) -> dict[str, Any]:
    params = models.family_of(model).init(model, key)
    if base is not None:
        params = mup.initial(params, model, base)
    return resting(params, parameters)


def _model(family: Any, data: dict[str, Any]) -> Any:
    """A family's config from plain JSON."""
    return _build(family.Config, nested(data))


def nested(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a family's `Config`, those made that in JSON are fields themselves.

    Raises:
      ValueError: an unknown field of one, with the nearest that are known.
    """
    found = dict(data)
    for name, make in NESTED.items():
        if isinstance(found.get(name), Mapping):
            found[name] = make(found[name])
    return found


def _non_default(value: Any) -> dict[str, Any]:
    data = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.default is not dataclasses.MISSING and item == field.default:
            continue
        data[field.name] = _non_default(item) if _is_data(item) else item
    return data


def _is_data(item: Any) -> bool:
    return dataclasses.is_dataclass(item) and not isinstance(item, type | Layout)


def _build(cls: Any, fields: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
        one_of(f"field of {cls.__name__}", name, known)
    return cls(**fields)


#: Field of a family's `Config` -> what makes it of its own fields.
NESTED: dict[str, Callable[[Any], Any]] = {
    "rope_scaling": functools.partial(_build, RopeScaling),
    "routing": functools.partial(_build, Routing),
    "mask": Sight.from_json,
}
