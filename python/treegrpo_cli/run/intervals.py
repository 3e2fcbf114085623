"""Rewards of questions -> their mean with a 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z_95 = 1.959963984540054


class Mean(NamedTuple):
    """A mean over `num_values` values, and its 95% interval."""

    mean: float
    low: float
    high: float
    num_values: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} (95% interval {self.low:.3f} to {self.high:.3f}, n = {self.num_values})"


def mean_with_interval(values: Sequence[float]) -> Mean:
    """Return the mean of `values` with Wilson's score interval, or the normal one where a value leaves [0, 1].

    Wilson's interval is exact in form for 0/1 values and wide enough for others in [0, 1], whose variance
    is smaller; it stays inside [0, 1] and does not collapse where all values are equal. NaN without values.
    """
    count = len(values)
    if count == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if all(0 <= value <= 1 for value in values):
        shrink = 1 + Z_95**2 / count
        centre = (mean + Z_95**2 / (2 * count)) / shrink
        half = Z_95 / shrink * math.sqrt(max(mean * (1 - mean), 0.0) / count + (Z_95 / (2 * count)) ** 2)
        return Mean(mean, 0.0 if mean == 0 else centre - half, 1.0 if mean == 1 else centre + half, count)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(count - 1, 1))
    half = Z_95 * spread / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, count)
