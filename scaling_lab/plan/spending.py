"""What may be spent on a training and on serving it, and what that costs."""

from __future__ import annotations

import dataclasses
import math

DAY, HOUR = 86_400.0, 3600.0
#: A forward pass is a third of a training step's FLOPs.
SERVED = 1 / 3


@dataclasses.dataclass(frozen=True)
class Spending:
    """What may be spent, and what it costs.

    Attributes:
      days: of the whole machine. serve_tokens: to be served within them too.
      serve_efficiency: of serving, over training's FLOP/s.
      price: of a chip for an hour. watts: of a chip with its share of everything.
    """

    days: float
    serve_tokens: float = 0.0
    serve_efficiency: float = 1.0
    price: float | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        for name in ("days", "serve_efficiency", "price", "watts"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be above 0")
        if self.serve_tokens < 0:
            raise ValueError(f"serve_tokens={self.serve_tokens}: must not be negative")

    def costs(self, chip_hours: float) -> dict[str, float | None]:
        """Chip-hours as energy and money."""
        kwh = None if self.watts is None else chip_hours * self.watts / 1000
        money = None if self.price is None else chip_hours * self.price
        return {"chip_hours": chip_hours, "energy_kwh": kwh, "money": money}
