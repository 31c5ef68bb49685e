"""What a prediction must beat: efficiencies looked up instead of priced.

A look-up takes the model FLOPs of a run, the peak of its machine, and an efficiency
from rows that it has. Both baselines see the same facts as the model.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.cost.efficiencies import family_of
from scaling_lab.cost.points import PRECISIONS, Points
from scaling_lab.cost.shapes import model_flops

_LOW = PRECISIONS.index("float8")


def efficiency(points: Points, seconds: np.ndarray) -> np.ndarray:
    """Causal model FLOPs over the 16-bit peak."""
    return floor_seconds(points) / seconds


def floor_seconds(points: Points) -> np.ndarray:
    """Seconds of the model FLOPs at the 16-bit peak."""
    return model_flops(points) / (points.devices * points.bf16_flops_per_second)


def median_of_kind(points: Points, known: Points, seconds: np.ndarray) -> np.ndarray:
    """Step seconds at the median efficiency of the same chip and kind.

    Kind: dense or with experts, 16 bits or fewer. Where no such row is known: of the
    chip's family, then of the kind, then of all.
    """
    have = efficiency(known, seconds)
    there, here = _labels(known), _labels(points)
    found = np.empty(len(points))
    for i in range(len(points)):
        chip = there["chip"] == here["chip"][i]
        family = there["family"] == here["family"][i]
        kind = there["kind"] == here["kind"][i]
        for mask in (chip & kind, family & kind, kind, family, kind | True):
            if mask.any():
                found[i] = np.median(have[mask])
                break
    return floor_seconds(points) / found


def nearest_neighbour(points: Points, known: Points, seconds: np.ndarray) -> np.ndarray:
    """Step seconds at the efficiency of the nearest row that is known.

    Nearest in the standardised logarithms of size, machine, length, batch and
    recomputation, among rows of the same kind where there are any, and rather of the
    same family and chip. Of the 45 look-ups tried (three efficiencies, three sets of
    features, five ways to prefer a chip) this one errs least over all rows.
    """
    have = efficiency(known, seconds)
    there, here = _labels(known), _labels(points)
    far, near = _features(known), _features(points)
    scale = np.maximum(far.std(0), 1e-9)
    prices = {"experts": 1e5, "low": 1e4, "family": 10.0, "chip": 4.0}
    found = np.empty(len(points))
    for i in range(len(points)):
        distance = (((far - near[i]) / scale) ** 2).sum(1)
        for name, price in prices.items():
            distance = distance + price * (there[name] != here[name][i])
        found[i] = have[np.argmin(distance)]
    return floor_seconds(points) / found


def _labels(p: Points) -> dict[str, np.ndarray]:
    experts, low = p.n_experts > 0, p.precision >= _LOW
    return {
        "chip": p.chip.astype(str),
        "family": np.array([family_of(str(chip)) for chip in p.chip]),
        "experts": experts,
        "low": low,
        "kind": 2 * experts + low,
    }


def _features(p: Points) -> np.ndarray:
    columns = (
        np.log(p.active_params),
        np.log(p.devices),
        np.log(p.seq_len),
        np.log(p.global_batch_tokens / p.devices),
        2 * p.recompute,
    )
    return np.stack(columns, 1)
