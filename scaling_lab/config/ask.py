"""One grammar everywhere: the words people type, as a `RunConfig`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from scaling_lab import models
from scaling_lab.config.run import RunConfig
from scaling_lab.data import DataConfig, load
from scaling_lab.hardware import Target, parse_target
from scaling_lab.layouts import Layout, parse
from scaling_lab.names import one_of
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.parallel.sight import Sight

_RUN = {field.name for field in dataclasses.fields(RunConfig)} - {
    "model",
    "layout",
    "optimizer",
    "data",
    "size",
    "target",
    "mup",
}
_OPTIMIZER = {field.name for field in dataclasses.fields(OptimizerConfig)} - {"name"}
#: What a vocabulary is rounded up to, so that it divides over a mesh.
VOCABULARY_MULTIPLE = 128


def configure(
    family: str = "llama",
    size: str = "toy",
    layout: str | Layout = "fsdp",
    target: str = "local",
    *,
    devices: int | None = None,
    **words: Any,
) -> RunConfig:
    """A run from words, as every command takes them.

    Args:
      family, size: of the model (``scaling-lab models`` lists them).
      layout: axes with sizes and modifiers, a layout file's name, or tables of one's
        own.
      target: ``cpu:8``, ``tpu-v5p:4x4x4``, ``h100:8x8`` or ``local``.
      devices: of a local target; sizes a layout given by name alone.
      words: fields of `RunConfig` and `OptimizerConfig`; ``optimizer`` is a name,
        ``data`` a name or paths, ``tokenizer`` and ``held_out_fraction`` the data's,
        ``width``, ``layers`` and ``vocabulary`` replace the size's (see
        `models.resized`), ``mup`` names the size or the width that the learning rate
        was tuned at (see `config.mup`), ``tokens`` is said instead of ``steps``, as a
        number that is a whole number of steps, ``mask`` says what layers
        see, in the words of `parallel.sight.Sight.parse`, and ``routing`` what differs
        in how tokens find experts, in those of `models.routed`. Unless it is given,
        ``precision`` is float32 on the host's processor and the devices present, and
        bfloat16 on a TPU or GPU that is named; parameters are float32 everywhere.
        ``xla_flags`` are flags, or the name of a set of the chip's (``overlap``).

    Raises:
      ValueError: an unknown word, with the nearest that are known.
    """
    extra = ("optimizer", "data", "tokenizer", "held_out_fraction", *_KINDS, *_SIZES)
    for word in words:
        one_of("option", word, sorted({*_RUN, *_OPTIMIZER, *extra}))
    # To every word but one, None is silence; to clip it means never.
    given: dict[str, Any] = {
        w: v for w, v in words.items() if v is not None or w == "clip"
    }
    model, base = _models(family, size, given)
    machine = parse_target(target)
    count = machine.devices or devices
    if machine.chip is not None and machine.chip.name != "cpu":
        given.setdefault("precision", "bfloat16")
    if "xla_flags" in given:
        given["xla_flags"] = named_flags(given["xla_flags"], machine)
    if "tokens" in given:
        given["steps"] = _steps(given)
    return RunConfig(
        model=model,
        layout=layout if isinstance(layout, Layout) else parse(layout, count),
        target=target,
        optimizer=_optimizer(given),
        data=_data(given),
        size=size,
        mup=base,
        **{word: value for word, value in given.items() if word in _RUN},
    )


def named_flags(text: str, machine: Target) -> str:
    """Flags as they are, or those of a named set of the target's chip.

    Raises:
      ValueError: the chip has no set of that name, with those it has.
    """
    if not text or "=" in text or text.lstrip().startswith("--"):
        return text
    sets = machine.chip.flags if machine.chip is not None else {}
    if not sets:
        raise ValueError(
            f"xla_flags {text!r}: {machine.text} has no named sets of flags; write "
            "--name=value"
        )
    one_of(f"set of flags of {machine.text}", text, sorted(sets))
    return sets[text]


_MODEL = {"layers": "L", "vocabulary": "V"}
#: Words that are about what the model's layers do.
_KINDS = ("mask", "routing")
#: Words that are about the model's sizes.
_SIZES = (*_MODEL, "width", "mup", "tokens")


def _models(family: str, size: str, given: dict[str, Any]) -> tuple[Any, Any]:
    """The model that the words are about, and the one that muP starts from."""
    changes = {_MODEL[word]: given[word] for word in _MODEL if word in given}
    model = dataclasses.replace(models.size(family, size), **changes)
    base = _base(model, family, given) if "mup" in given else None
    if "width" in given:
        model = models.resized(model, width=given["width"])
    if base is not None and hasattr(model, "embed_width"):
        model = dataclasses.replace(model, embed_width=base.embed_width)
    if "mask" in given:
        model = models.seeing(model, Sight.parse(given["mask"]))
    if "routing" in given:
        model = models.routed(model, given["routing"])
        # A router's bias is a parameter, and muP compares the parts of both.
        base = base and models.routed(base, given["routing"])
    return model, base


def _steps(given: dict[str, Any]) -> int:
    """Steps that a number of tokens takes.

    Raises:
      ValueError: they are no whole number of steps, with the nearest that are: runs of
        one sweep would otherwise differ a little in what is held equal.
    """
    known = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    batch, length = (given.get(word, known[word]) for word in ("batch", "length"))
    steps, rest = divmod(given["tokens"], batch * length)
    if rest or not steps:
        near = sorted({max(1, steps), steps + 1})
        raise ValueError(
            f"tokens={given['tokens']}: a step has {batch} × {length}; nearest: "
            f"{', '.join(str(n * batch * length) for n in near)}"
        )
    return steps


def _base(model: Any, family: str, given: dict[str, Any]) -> Any:
    """The model that muP starts from: a width of this one, or a size of the family."""
    text = str(given["mup"])
    if text.isdigit():
        base = models.resized(model, width=int(text))
    else:
        base = models.size(family, text)
    if hasattr(base, "embed_width"):
        base = dataclasses.replace(base, embed_width=base.embed_width or base.D)
    return base


def with_data(config: RunConfig, cache_dir: Any = None, progress: Any = None):
    """The config with its data read: digests filled, the vocabulary made to fit.

    Returns:
      the config and its `Dataset`.
    """
    dataset = load(config.data, cache_dir, progress)
    model = config.model
    if dataset.vocab_size > model.V:
        rounded = -(-dataset.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        model = dataclasses.replace(model, V=rounded)
    return dataclasses.replace(config, model=model, data=dataset.config), dataset


def _optimizer(given: dict[str, Any]) -> OptimizerConfig:
    fields = {word: value for word, value in given.items() if word in _OPTIMIZER}
    return OptimizerConfig(name=given.get("optimizer", "adamw"), **fields)


def _data(given: dict[str, Any]) -> DataConfig:
    fields: dict[str, Any] = {}
    if "data" in given:
        source = given["data"]
        paths = isinstance(source, str | os.PathLike)
        fields["source"] = tuple(map(str, [source] if paths else source))
    for word in ("tokenizer", "held_out_fraction"):
        if word in given:
            fields[word] = given[word]
    return DataConfig(**fields)
