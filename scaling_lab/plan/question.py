"""What is asked of a plan: a model, a machine, a batch, and what may be tried."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from scaling_lab import models
from scaling_lab.dims import AXES
from scaling_lab.hardware import Target
from scaling_lab.names import one_of
from scaling_lab.plan.huggingface import Shape

#: What a letter after a number of tokens means.
SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
#: Of tokens, so many are still told apart.
MOST = 2**53
#: Share of what a program can have of a device's memory that a plan may fill: the rest
#: is fragmentation and what no formula knows. A compiled verdict replaces it.
USABLE = 0.95


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      batch: global, in sequences. length: tokens per sequence.
      precision: of matrix products. optimizer: a name of ours.
      node_gbps: network of one node instead of the chip's, gigabits per second.
      axes: mesh axes that may be used.
      wide_tensor: whether ``tensor`` may leave the scale-up network (a node).
      calibration: efficiencies instead of the fitted ones.
    """

    shape: Shape
    target: Target
    batch: int
    length: int
    precision: str = "bfloat16"
    optimizer: str = "adamw"
    node_gbps: float | None = None
    axes: tuple[str, ...] = AXES
    wide_tensor: bool = False
    calibration: Any = None

    def __post_init__(self) -> None:
        for axis in self.axes:
            one_of("axis", axis, AXES)
        for name in ("batch", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.node_gbps is not None and not self.node_gbps > 0:
            raise ValueError(f"node_gbps={self.node_gbps}: must be above 0")
        longest = self.shape.length
        if longest is not None and self.length > longest:
            raise ValueError(
                f"length={self.length} is more than the {longest} positions of "
                f"{self.shape.name}; use --length {longest} or less"
            )
        if self.shape.config is not None:
            models.check(self.shape.config, self.length)

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.length

    @property
    def devices(self) -> int:
        """Of the target, as JAX counts them.

        Raises:
          ValueError: ``local``, which is no machine on paper.
        """
        if self.target.devices is None:
            raise ValueError(
                "target 'local' says nothing on paper; name a machine, as in "
                "'tpu-v5p:4x4x4' or 'h100:8x8'"
            )
        return self.target.devices

    @property
    def limit_bytes(self) -> float:
        """What one device may hold; infinite where nobody says (a CPU)."""
        chip = self.target.chip
        size = chip.device_hbm_bytes if chip is not None else None
        return float("inf") if size is None else USABLE * size


def sequences(text: str | int, length: int) -> int:
    """A batch in tokens as whole sequences: ``4M`` of 8192 is 512.

    Args:
      text: a number, or one with K, M, G or T (powers of 1024).

    Raises:
      ValueError: not a number, or less than half a sequence.
    """
    count = tokens(text)
    whole = round(count / length)
    if whole < 1:
        raise ValueError(
            f"batch of {text} tokens is less than one sequence of {length}; give "
            f"--batch-tokens {length} or more"
        )
    return whole


def tokens(text: str | int) -> float:
    """A number of tokens: ``4M`` is four times 2^20.

    Raises:
      ValueError: not a number with K, M, G, T or nothing, or more than `MOST`.
    """
    plain = re.sub(r"(?<=\d)[,_](?=\d)", "", str(text).strip().upper())
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:E\d{1,3})?)([KMGT]?)", plain)
    if not match:
        raise ValueError(
            f"{text!r} tokens: write a number, or one with K, M, G or T, as 4M "
            "(M is 2^20)"
        )
    count = float(match[1]) * SUFFIXES[match[2]]
    if count > MOST:
        raise ValueError(f"{text!r} tokens: at most {MOST >> 40}T are counted")
    return count
