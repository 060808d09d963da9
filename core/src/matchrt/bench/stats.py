"""Medians with spread, and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def quantile(values: Sequence[float], share: float) -> float:
    """Between the two nearest values, linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values: Sequence[float], per: float = 1.0) -> dict[str, Any]:
    """Median, quartiles, least value and number of `values`, each divided by `per`."""
    return {
        "median": quantile(values, 0.5) / per,
        "q25": quantile(values, 0.25) / per,
        "q75": quantile(values, 0.75) / per,
        "min": min(values) / per,
        "n": len(values),
    }


def log_slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent k of the least-squares fit y = c·x^k. Raises ValueError with fewer than two different x, or values not above 0."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(v) / len(logs) for v in zip(*logs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    if spread == 0:
        raise ValueError("a slope needs two different sizes")
    return float(sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread)
