"""What a fit may be asked."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read a table and how to fit it; printed with the fit."""

    n_column: str | None = None
    """Column of the parameters. Columns that are not named are guessed, and said."""
    d_column: str | None = None
    """Column of the training tokens; without one, FLOPs / (6 parameters)."""
    c_column: str | None = None
    """Column of the training FLOPs; without one, 6 parameters tokens."""
    loss_column: str | None = None
    """Column of the loss, or of whatever the law predicts."""
    column: tuple[str, ...] = ()
    """Other columns a law needs, as width=d_model or x=flops."""
    scale: tuple[str, ...] = ()
    """Units of columns, as d=1e9 for tokens in billions."""
    where: tuple[str, ...] = ()
    """Rows to fit, as dataset=c4 or "flops>=1e18"."""
    weight_column: str | None = None
    """Column of weights; sigma:NAME takes 1/NAME²."""
    drop_highest: int = 0
    """Rows of the highest loss to leave out."""
    duplicates: str = "keep"
    """keep or drop rows that repeat another."""
    huber: float | None = None
    """Minimise Huber's loss of log residuals with this delta."""
    loss: str | None = None
    """huber, log_mse or mse instead of the law's usual one."""
    solver: str | None = None
    """lse (descent of all parameters) or projection (of the exponents; squares)."""
    fix: tuple[str, ...] = ()
    """Parameters to hold, as alpha=0.35."""
    window: float | None = None
    """Of every isoFLOP budget, only sizes within this factor of the best one's."""
    bootstrap: int = 400
    """Refits to resampled points, for intervals."""
    resample: str = "case"
    """case (rows drawn again) or parametric (the fit with noise drawn again)."""
    interval: float = 0.95
    """Share inside an interval, of the bootstrap or by profile."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        one_of = {
            "duplicates": ("keep", "drop"),
            "loss": (None, "huber", "log_mse", "mse"),
            "solver": (None, "lse", "projection"),
            "resample": ("case", "parametric"),
        }
        for name, known in one_of.items():
            if getattr(self, name) not in known:
                words = ", ".join(str(each) for each in known if each)
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {words}")
        if self.window is not None and not self.window > 1:
            raise ValueError(f"window {self.window}: a factor above 1, as 4")
        if self.huber is not None and not 0 < self.huber < math.inf:
            raise ValueError(f"huber {self.huber}: delta must be positive, as 1e-3")
        if self.huber is not None and self.loss not in (None, "huber"):
            raise ValueError(f"huber {self.huber} and loss {self.loss}: one of them")
        for name, least in (("drop_highest", 0), ("bootstrap", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least}")
        if 0 < self.bootstrap < 20:
            raise ValueError(
                f"bootstrap {self.bootstrap}: too few for intervals; 0, or 20 and more"
            )
        if not 0 < self.interval < 1:
            raise ValueError(f"interval {self.interval}: a share between 0 and 1")

    @classmethod
    def of(cls, words: dict[str, Any]) -> Options:
        """Options from keywords; lists and mappings will do where pairs are meant."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in words:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2)
                hint = f"; nearest: {', '.join(near)}" if near else ""
                raise ValueError(f"fit has no option {name!r}{hint}")
        pairs = {"column", "scale", "fix", "where"}
        read: dict[str, Any] = {
            name: _pairs(value) if name in pairs else value
            for name, value in words.items()
        }
        return cls(**read)

    def numbers(self, field: str) -> dict[str, float]:
        """``name=number`` pairs of `scale` or `fix`."""
        found = {}
        for name, text in pairs_of(getattr(self, field), field).items():
            try:
                found[name] = float(text)
            except ValueError:
                found[name] = math.nan
            if not math.isfinite(found[name]):
                raise ValueError(f"{field} {name}={text}: not a number")
        return found


def pairs_of(texts: tuple[str, ...], field: str) -> dict[str, str]:
    """``("a=b", …)`` as a mapping."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise ValueError(f"{field} {text!r} is not NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _pairs(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if hasattr(value, "items"):
        return tuple(f"{name}={item}" for name, item in value.items())
    return tuple(value)
