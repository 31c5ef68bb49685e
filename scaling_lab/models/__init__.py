"""Model families, one file each, written in the six verbs for one device.

A family's file offers `Config` (a frozen dataclass whose one-letter fields are the
sizes of dims), `SIZES`, and three pure functions:

* ``init(config, key) -> params``: nested plain dicts, names ending in their dims;
* ``hidden(config, params, batch, place, cache=None) -> Output``;
* ``head(config, params) -> head_DV``.

A family may also learn from more than the next token: ``further(config, params, batch,
place, output)`` gives another `Output`, its ``targets_BT`` and their loss's weight.

What its layers see of a document is its config's ``mask``, a `parallel.sight.Sight`;
how tokens find experts, where it has any, its ``routing``, a `parallel.verbs.Routing`.

``batch`` holds ``tokens_BT``, ``positions_BT`` and ``segments_BT``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from scaling_lab.models.dial import resized as resized
from scaling_lab.names import unknown
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import routing_fields


def families() -> list[str]:
    """The families there are: the files that offer `SIZES`."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [
        name
        for name in names
        if hasattr(importlib.import_module(f"{__name__}.{name}"), "SIZES")
    ]


def family(name: str) -> ModuleType:
    """The file of a family.

    Raises:
      ValueError: there is none of that name, with the nearest that are.
    """
    known = families()
    if name not in known:
        raise ValueError(unknown("family", name, known))
    return importlib.import_module(f"{__name__}.{name}")


def size(family_name: str, name: str) -> Any:
    """The config of one published size.

    Raises:
      ValueError: unknown family or size, with the nearest names.
    """
    sizes = family(family_name).SIZES
    if name not in sizes:
        raise ValueError(unknown(f"size of {family_name}", name, list(sizes)))
    return sizes[name]


def widths(config: Any, letter: str) -> tuple[int, ...]:
    """The sizes that a dim has in a model: one, but where its config lists more.

    Unlike layers count L apart, and experts of another width than a dense layer's F.
    """
    listed = getattr(config, "widths", {}).get(letter)
    if listed:
        return listed
    return (getattr(config, "length" if letter == "T" else letter),)


def sight(config: Any) -> Sight:
    """What a model's layers see, those that see least; of Gemma 3 its local ones'."""
    own = getattr(config, "mask", None)
    if own is None:
        own = Sight(window=config.window, every=config.period)
    return own


def check(config: Any, length: int) -> None:
    """Raises unless layers can see rows of a length, and route their tokens, so.

    Raises:
      ValueError: what of its mask or routing cannot be, and what would do.
    """
    own = sight(config)
    own.check()
    own.check_length(length)
    routing = getattr(config, "routing", None)
    if routing is not None:
        routing.check(config.E)


def seeing(config: Any, sight: Sight) -> Any:
    """The model with layers that see so.

    Raises:
      ValueError: the family has no such layers, with what it has.
    """
    name = family_of(config).__name__.rpartition(".")[2]
    if not hasattr(config, "mask"):
        if not sight.windows_alone or not sight.every:
            raise ValueError(
                f"mask {sight.text}: {name} has windows and layers that see all, as "
                f"window={config.window},global={config.period}; of other masks ask "
                "llama"
            )
        return dataclasses.replace(config, window=sight.window, period=sight.every)
    if sight.every and not hasattr(config, "runs"):
        raise ValueError(
            f"mask {sight.text}: layers of {name} are of two kinds already and all see "
            f"alike; leave global={sight.every} out, or ask llama"
        )
    block = getattr(family_of(config), "Block", None)
    if sight.top and not getattr(block, "chooses", False):
        raise ValueError(
            f"mask {sight.text}: attention of {name} has no summaries to choose blocks "
            "by; ask llama, qwen3 or mixtral, or say which it sees: blocks=MAP.json"
        )
    return dataclasses.replace(config, mask=sight)


def with_experts() -> list[str]:
    """Names of the families whose tokens find experts."""
    return [each for each in families() if hasattr(size(each, "toy"), "routing")]


def routing(config: Any) -> str | None:
    """How a model's tokens find their experts, in words; ``None`` without experts."""
    if not hasattr(config, "routing"):
        return None
    return config.routing.text + ",bias=yes" * getattr(config, "biased", False)


def routed(config: Any, text: str) -> Any:
    """The model whose tokens find their experts in another way.

    Args:
      text: what is to differ from the model's own, in the words of
        `parallel.verbs.routing_fields`: ``top=1,gate=sigmoid``.

    Raises:
      ValueError: no such routing, or a family without experts, or without a bias.
    """
    fields = routing_fields(text)
    name = family_of(config).__name__.rpartition(".")[2]
    if not hasattr(config, "routing"):
        raise ValueError(
            f"routing {text}: {name} has no experts; {', '.join(with_experts())} have"
        )
    biased = fields.pop("biased", None)
    if biased is not None:
        if not hasattr(config, "biased"):
            raise ValueError(
                f"routing {text}: routers of {name} have no bias; leave it out, or ask "
                "deepseek"
            )
        config = dataclasses.replace(config, biased=biased)
    config = dataclasses.replace(
        config, routing=dataclasses.replace(config.routing, **fields)
    )
    config.routing.check(config.E)
    _check_chosen(config)
    return config


def _check_chosen(config: Any) -> None:
    """Raises if experts choose, and something is left that only tokens' choices use."""
    if config.routing.choice != "expert":
        return
    left = ["groups=1"] * (config.routing.groups > 1)
    left += ["bias=no"] * getattr(config, "biased", False)
    if left:
        raise ValueError(
            "routing choice=expert: experts choose among all tokens, without groups "
            f"and bias; say {','.join(left)} too"
        )


def further(config: Any, params: Any, batch: Any, place: Any, output: Any) -> Any:
    """A family's ``further``; ``None`` where it learns from the next token alone."""
    own = getattr(family_of(config), "further", None)
    return own(config, params, batch, place, output) if own else None


def family_of(config: Any) -> ModuleType:
    """The file a config comes from."""
    return importlib.import_module(type(config).__module__)
