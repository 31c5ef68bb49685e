"""Predicted step time, memory and efficiency of many points at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scaling_lab.cost.points import Points


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Columns, one entry a point.

    Attributes:
      step_seconds: of one optimizer step.
      low_seconds: lower end of the 80 % interval.
      high_seconds: upper end of it.
      compute_seconds: matrix products, recomputation included.
      attention_seconds: scores and values, recomputation included.
      memory_seconds: operations bound by memory (norms, activations, residuals).
      communication_seconds: exposed, by mesh axis.
      bubble_seconds: pipeline stages idle.
      optimizer_seconds: the update.
      overhead_seconds: launches and what grows with neither FLOPs nor bytes.
      tokens_per_second_per_chip: of the whole step.
      mfu_causal: model FLOPs (attention counted causally) over the bfloat16 peak.
      hbm_bytes: of one device at its peak.
    """

    step_seconds: np.ndarray
    low_seconds: np.ndarray
    high_seconds: np.ndarray
    compute_seconds: np.ndarray
    attention_seconds: np.ndarray
    memory_seconds: np.ndarray
    communication_seconds: dict[str, np.ndarray]
    bubble_seconds: np.ndarray
    optimizer_seconds: np.ndarray
    overhead_seconds: np.ndarray
    tokens_per_second_per_chip: np.ndarray
    mfu_causal: np.ndarray
    hbm_bytes: np.ndarray


def predict(points: Points, calibration: Any = None) -> Prediction:
    """Predicts every point.

    Args:
      points: what to predict.
      calibration: efficiencies instead of the fitted ones.
    """
    raise NotImplementedError
