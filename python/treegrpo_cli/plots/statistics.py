"""Scores of a few seeds -> interquartile means with 95% intervals, differences, and when a score is reached.

The interquartile mean leaves out the lowest and the highest quarter of the seeds; of fewer than four it leaves out
none, and is the mean. Intervals are percentiles of a bootstrap over seeds: seeds are drawn again, with replacement,
within each arm; for a difference of two arms on the same seeds, pairs are. The draws depend on a key alone.

Source: Agarwal et al. 2021 (arXiv 2108.13264). Their package, rliable, would bring arch, statsmodels, pandas and
seaborn for a trimmed mean and a resampling; the trimmed mean here is scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

Array = NDArray[np.float64]

NUM_RESAMPLES = 5000
QUARTER = 0.25
PERCENTILES = (0.025, 0.975)


class Estimate(NamedTuple):
    """A value with its 95% interval, which is None where there is one seed; infinite: not reached."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def iqm(values: Array) -> Array:
    """Return the interquartile mean over the first axis: int(n / 4) are left out at either end.

    >>> float(iqm(np.array([9.0, 1.0, 2.0, 3.0, 0.0])))
    2.0
    """
    return np.asarray(trim_mean(values, QUARTER, axis=0))


def meaning(num_seeds: int) -> str:
    """Say what the interquartile mean of so many seeds is.

    >>> meaning(3), meaning(5)
    ('mean of 3 seeds', 'mean of the middle 3 of 5 seeds')
    """
    middle = num_seeds - 2 * int(QUARTER * num_seeds)
    if middle == num_seeds:
        return f"mean of {num_seeds} seeds" if num_seeds > 1 else "one seed"
    return f"mean of the middle {middle} of {num_seeds} seeds"


def draw_again(num_seeds: int, key: str) -> NDArray[np.int64]:
    """Draw seeds again, with replacement: places, int64 [resamples, seeds]."""
    return np.random.default_rng([*key.encode()]).integers(0, num_seeds, (NUM_RESAMPLES, num_seeds))


def estimate(value: float, resampled: Array, num_seeds: int) -> Estimate:
    """Return a value with the percentiles of its resamples, which may be infinite."""
    if num_seeds < 2:
        return Estimate(value, None, None)
    low, high = np.quantile(resampled, PERCENTILES, method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def mean_of(values: Array, draws: NDArray[np.int64]) -> Estimate:
    """Return the interquartile mean of one value a seed."""
    return estimate(float(iqm(values)), iqm(values[draws].T), len(values))


def improvement(values: Array, draws: NDArray[np.int64], others: Array, other_draws: NDArray[np.int64]) -> Estimate:
    """Return the share of pairs in which a seed of the first is above one of the others; equal ones count half."""
    above = (values[:, None] > others) + 0.5 * (values[:, None] == others)
    times, other_times = _times_drawn(draws), _times_drawn(other_draws)
    resampled = ((times @ above) * other_times).sum(1) / above.size
    return estimate(float(above.mean()), resampled, min(len(values), len(others)))


def _times_drawn(draws: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each seed was drawn: [resamples, seeds]."""
    return np.array([np.bincount(drawn, minlength=draws.shape[1]) for drawn in draws])


class Band(NamedTuple):
    """A mean curve with its interval at each place, float64 [grid]; low and high are None with one seed."""

    value: Array
    low: Array | None
    high: Array | None


class Sheaf:
    """The curves of an arm's seeds on one grid, and the mean curves of their resamples.

    grid: float64 [grid], from 0 · curves: float64 [seeds, grid] · draws: int64 [resamples, seeds].
    """

    def __init__(self, grid: Array, curves: Array, draws: NDArray[np.int64]) -> None:
        self.grid, self.curves = grid, curves
        self.mean = iqm(curves)
        # of 5 seeds, 126 multisets can be drawn
        self._multisets, self._which = np.unique(np.sort(draws, axis=1), axis=0, return_inverse=True)
        self._means = iqm(curves[self._multisets].swapaxes(0, 1))

    def band(self) -> Band:
        """Return the mean curve with its interval."""
        if len(self.curves) < 2:
            return Band(self.mean, None, None)
        low, high = np.quantile(self._means[self._which], PERCENTILES, axis=0, method="inverted_cdf")
        return Band(self.mean, low, high)

    def reached(self, target: float, spent: Array | None = None) -> Estimate:
        """Return what is spent until the mean curve first has the score; infinite where it never does.

        `spent`, float64 [seeds, grid], is what each seed has spent of something else by each place of the grid.
        """

        def spent_by(curve: Array, drawn: Sequence[int]) -> float:
            return first_at(self.grid if spent is None else iqm(spent[list(drawn)]), curve, target)

        each = np.array([spent_by(curve, drawn) for curve, drawn in zip(self._means, self._multisets, strict=True)])
        num_seeds = len(self.curves)
        return estimate(spent_by(self.mean, range(num_seeds)), each[self._which], num_seeds)

    def num_reached(self, target: float) -> int:
        """Count the seeds whose own curve has the score somewhere."""
        return int((self.curves.max(1) >= target).sum())


def first_at(spent: Sequence[float] | Array, curve: Sequence[float] | Array, target: float) -> float:
    """Return what is spent where a curve, straight between its places, first has the score; else infinity.

    >>> first_at([0, 10, 20], [0.0, 0.5, 0.25], 0.25), first_at([0, 10, 20], [0.0, 0.5, 0.25], 0.75)
    (5.0, inf)
    """
    above = np.flatnonzero(np.asarray(curve) >= target)
    if not len(above):
        return math.inf
    place = int(above[0])
    if place == 0:
        return float(spent[0])
    share = (target - curve[place - 1]) / (curve[place] - curve[place - 1])
    return float(spent[place - 1] + share * (spent[place] - spent[place - 1]))
