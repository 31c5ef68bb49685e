"""What a fit minimises, for a batch of coordinates at once.

``huber``: Huber's loss of the residual of logarithms (Hoffmann et al. 2022): r²/2 below
delta, delta (|r| - delta/2) above. ``log_mse``: squares of those residuals. ``mse``:
squares of the residuals themselves. All are sums over points, weighted.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.studies.law import Array, LogModel

KINDS = ("huber", "log_mse", "mse")


@dataclasses.dataclass(frozen=True)
class Objective:
    """Kind, and where Huber's loss turns from squares to lines."""

    kind: str = "huber"
    delta: float = 1e-3

    @property
    def words(self) -> str:
        """For people."""
        return {
            "huber": f"sum of Huber losses of log residuals, delta {self.delta:g}",
            "log_mse": "sum of squared residuals of logarithms",
            "mse": "sum of squared residuals",
        }[self.kind]

    def residuals(self, log_BN: Array, log_y: Array) -> Array:
        """Predicted less observed, of what is squared."""
        if self.kind == "mse":
            return np.exp(log_BN) - np.exp(log_y)
        return log_BN - log_y

    def parts(self, log_BN: Array, log_y: Array, weight: Array) -> tuple[Array, Array]:
        """The sum of every row, and its derivative by the predicted logarithm."""
        far = self.residuals(log_BN, log_y)
        if self.kind != "huber":
            value = np.einsum("...n,...n->...", weight, far**2)
            by_far = 2 * weight * far
            return value, by_far * np.exp(log_BN) if self.kind == "mse" else by_far
        inner = np.clip(far, -self.delta, self.delta)
        value = np.einsum("...n,...n->...", weight, inner * (far - inner / 2))
        return value, weight * inner

    def stiffness(self, log_BN: Array, log_y: Array, weight: Array) -> Array:
        """Weights of the squares that lie on the objective from above, there."""
        if self.kind == "mse":
            return 2 * weight * np.exp(2 * log_BN)
        if self.kind == "log_mse":
            return 2 * weight + 0 * log_BN
        far = np.abs(log_BN - log_y)
        return weight * np.minimum(1.0, self.delta / np.maximum(far, 1e-300))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A curve over points, what it should be, and what is minimised.

    Attributes:
      model: the curve.
      log_y: logarithms of the response: (point,) or (batch, point).
      weight: (point,) or (batch, point).
      free: places of the coordinates that may move.
      base: all coordinates, (parameter,) or (batch, parameter): those not free stay.
    """

    model: LogModel
    objective: Objective
    log_y: Array
    weight: Array
    free: tuple[int, ...]
    base: Array

    def rows(self, kept: Array) -> Problem:
        """The same for some rows of the batch."""

        def of(table: Array) -> Array:
            return table[kept] if table.ndim == 2 else table

        return dataclasses.replace(
            self, log_y=of(self.log_y), weight=of(self.weight), base=of(self.base)
        )

    def whole(self, at_BF: Array) -> Array:
        """Free coordinates among the others: (batch, parameter)."""
        whole = np.broadcast_to(self.base, (len(at_BF), self.base.shape[-1])).copy()
        whole[:, list(self.free)] = at_BF
        return whole

    def value(self, at_BF: Array) -> tuple[Array, Array]:
        """The objective of every row and its gradient by the free coordinates."""
        with np.errstate(all="ignore"):
            log_BN, state = self.model.log_values(self.whole(at_BF))
            value, by_log = self.objective.parts(log_BN, self.log_y, self.weight)
            gradient = self.model.pull(state, by_log)[:, list(self.free)]
        return np.where(np.isfinite(value), value, np.inf), np.nan_to_num(gradient)

    def curvature(self, at_BF: Array) -> Array:
        """Gauss-Newton's matrix of every row: (batch, free, free)."""
        with np.errstate(all="ignore"):
            log_BN, state = self.model.log_values(self.whole(at_BF))
            stiff = self.objective.stiffness(log_BN, self.log_y, self.weight)
            slopes = self.model.jacobian(state)[..., list(self.free)]
            rooted = slopes * np.sqrt(stiff)[..., None]
            matrix = np.matmul(np.swapaxes(rooted, 1, 2), rooted)
        return np.nan_to_num(matrix, posinf=0.0, neginf=0.0)
