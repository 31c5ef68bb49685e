"""A model as a plan sees it: its sizes and counts, whoever wrote them down.

`of_config` reads a family's config of ours, `read` a JSON file with the fields of one
or a Hugging Face ``config.json`` (`huggingface`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling_lab import models
from scaling_lab.config.run import NESTED, nested
from scaling_lab.models.shape import sizes
from scaling_lab.names import one_of
from scaling_lab.parallel.sight import Sight
from scaling_lab.plan import hf_families, hf_fields, huggingface
from scaling_lab.plan.hf_fields import whole
from scaling_lab.plan.huggingface import Shape

__all__ = ["Shape", "of_config", "read", "routed", "seeing"]


def of_config(config: Any) -> Shape:
    """The shape of a family's `Config`; parameters are counted, not estimated."""
    return Shape(
        name=type(config).__module__.rpartition(".")[2],
        length=getattr(config, "length", None),
        config=config,
        **sizes(config),
    )


def read(path: str | Path) -> Shape:
    """The shape in a JSON file.

    Args:
      path: of a family's fields (``{"family": "llama", "L": 32, …}``) or of a Hugging
        Face ``config.json``.

    Raises:
      ValueError: neither, with what is missing.
      OSError: no such file.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a model's fields")
    try:
        found = _family(data) if "family" in data else _theirs(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def seeing(shape: Shape, mask: str) -> Shape:
    """The model with layers that see so.

    Args:
      mask: as `Sight.parse` reads it: ``window=1024,global=6``.

    Raises:
      ValueError: no such mask; no family of ours, or one without such layers.
    """
    if shape.config is None:
        raise ValueError(
            f"mask {mask}: {shape.name} is no family of this lab yet; its layers see "
            "what its own file says"
        )
    config = models.seeing(shape.config, Sight.parse(mask))
    return dataclasses.replace(shape, config=config, **sizes(config))


def routed(shape: Shape, routing: str) -> Shape:
    """The model whose tokens find their experts in another way.

    Args:
      routing: what is to differ, as `models.routed` reads it: ``top=1``.

    Raises:
      ValueError: no such routing; no family of ours, or one without experts.
    """
    if shape.config is None:
        raise ValueError(
            f"routing {routing}: {shape.name} is no family of this lab yet; its tokens "
            "find experts as its own file says"
        )
    config = models.routed(shape.config, routing)
    return dataclasses.replace(shape, config=config, **sizes(config))


def _theirs(data: dict[str, Any]) -> Shape:
    filled, _ = hf_fields.filled(data)
    shape = huggingface.read(data)
    return dataclasses.replace(shape, config=hf_families.config_of(filled, shape))


def _family(data: dict[str, Any]) -> Shape:
    fields = dict(data)
    module = models.family(str(fields.pop("family")))
    size = fields.pop("size", None)
    known = [field.name for field in dataclasses.fields(module.Config)]
    for name in fields:
        one_of(f"field of {data['family']}", name, known)
    _of_kinds(module.Config, fields)
    fields = nested(fields)
    for name in NESTED:
        if fields.get(name) is not None:
            _of_kinds(type(fields[name]), vars(fields[name]))
    needed = [
        field.name
        for field in dataclasses.fields(module.Config)
        if field.default is dataclasses.MISSING and field.name not in fields
    ]
    if size is not None:
        made = dataclasses.replace(models.size(data["family"], size), **fields)
    elif needed:
        raise ValueError(
            f"missing of {data['family']}: {', '.join(needed)}; or give a size to "
            'start from, as "size": "8b"'
        )
    else:
        made = module.Config(**fields)
    huggingface.even("N", made.N, made.K)
    if getattr(made, "dense", 0) >= made.L:
        raise ValueError(
            f"dense={made.dense} of L={made.L} layers must leave one with experts"
        )
    return of_config(made)


def _of_kinds(cls: Any, values: Mapping[str, Any]) -> None:
    """Raises unless values from JSON are of the kinds of a class's fields."""
    for field in dataclasses.fields(cls):
        if field.name in values:
            _of_kind(field.name, field.default, values[field.name])


def _of_kind(name: str, usual: Any, value: Any) -> None:
    """The same of one field, told by its default."""
    if value is None and usual is None:
        return
    if name in NESTED or name == "blocks":
        if not (isinstance(value, dict) or dataclasses.is_dataclass(value)):
            raise ValueError(f"{name}={value!r} must hold its fields, as {{...}}")
    elif isinstance(usual, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")
    elif isinstance(usual, str):
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} must be a word")
    elif isinstance(usual, float):
        finite = isinstance(value, int | float) and -math.inf < value < math.inf
        if isinstance(value, bool) or not finite:
            raise ValueError(f"{name}={value!r} must be a number")
    else:
        whole(name, value, least=int(name != "shared_width"))
