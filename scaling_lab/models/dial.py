"""One dial for width, one for depth: the family of sizes about a given one."""

from __future__ import annotations

import dataclasses
from typing import Any

#: What grows with the width, beside D and the heads, and is rounded to `MULTIPLE`.
INNER = ("F", "Q", "R", "expert_width", "shared_width")
MULTIPLE = 8


def resized(config: Any, *, width: int | None = None, layers: int | None = None) -> Any:
    """The same model at another width or depth.

    Heads keep their width H and grow in number, as everything else grows with D:
    the feed-forward, experts, latents. Vocabulary and positions stay.

    Args:
      width: the new D. layers: the new L.

    Raises:
      ValueError: heads would not be whole, with the nearest widths.
    """
    changes: dict[str, Any] = {}
    if layers is not None:
        changes["L"] = layers
    if width is not None and width != config.D:
        changes |= _wider(config, width)
    return dataclasses.replace(config, **changes)


def _wider(config: Any, width: int) -> dict[str, Any]:
    heads, rest = divmod(config.N * width, config.D)
    if rest or not heads:
        per_head = config.D / config.N
        low = max(1, int(width / per_head))
        near = [n * per_head for n in (low, low + 1)]
        near = [f"{w:.0f}" for w in near if w == int(w)]
        raise ValueError(
            f"width={width}: heads of width {config.H} take {per_head:g} of D each, "
            f"so {width / per_head:.4g} of them; nearest widths: {', '.join(near)}"
        )
    keys = max(1, round(config.K * width / config.D))
    while heads % keys:
        keys -= 1
    inner = {
        name: max(MULTIPLE, round(value * width / config.D / MULTIPLE) * MULTIPLE)
        for name in INNER
        if (value := getattr(config, name, None))
    }
    return {"D": width, "N": heads, "K": keys, **inner}
