"""The same metric of a few runs -> one line with its interval, on places that all of them have.

Several runs of a group are one line: the interquartile mean over them with its 95% bootstrap interval, as `compare` has
it. It stands where each run has been: it ends with the shortest, and is one point where
they have no place in common. One run alone is drawn as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from treegrpo_cli.plots.history import Array, Series

GRID_SIZE = 201
MAX_POINTS = 1000
"""More points than a picture has dots are drawn as means of neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One line of a panel: whose it is (`group`, -1: nobody's alone) and what of it (`part`) are places in the panel.

    x, y: float64 [points]; low and high its interval, or None; `faint` what was there before it was smoothed.
    """

    group: int
    part: int
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    faint: Array | None = None


def line_of(found: Sequence[Series], key: str, group: int = 0, part: int = 0, smooth: int = 1) -> Line:
    """Return the line of a group's runs. `key` seeds the bootstrap: its name."""
    smoothed = [one._replace(y=smoothed_over(one.y, smooth)) for one in found]
    if len(found) > 1:
        return _joined(smoothed, key, group, part)
    [one] = smoothed
    faint = found[0].y if smooth > 1 else None
    return thinned(Line(group, part, one.x, one.y, one.low, one.high, faint))


def smoothed_over(y: Array, num_points: int) -> Array:
    """Return the mean of each point and those before it, `num_points` in all; what is not known is left out.

    >>> smoothed_over(np.array([1.0, 3.0, np.nan, 7.0]), 2).tolist()
    [1.0, 2.0, 3.0, 7.0]
    """
    if num_points <= 1:
        return y
    known = ~np.isnan(y)
    sums, counts = (np.concatenate([[0.0], np.cumsum(values)]) for values in (np.where(known, y, 0.0), known))
    first = np.maximum(np.arange(len(y)) + 1 - num_points, 0)
    total, count = sums[1:] - sums[first], counts[1:] - counts[first]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def thinned(line: Line) -> Line:
    """Return the line with at most `MAX_POINTS` points, each the mean of its neighbours."""
    share = -(-len(line.x) // MAX_POINTS)
    if share <= 1:
        return line
    low, high, faint = (
        None if values is None else _bins(values, share) for values in (line.low, line.high, line.faint)
    )
    return replace(line, x=_bins(line.x, share), y=_bins(line.y, share), low=low, high=high, faint=faint)


def _bins(values: Array, share: int) -> Array:
    """Means of so many at a time, without what is not known."""
    padded = np.append(values, np.full(-len(values) % share, np.nan)).reshape(-1, share)
    known = ~np.isnan(padded)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, padded, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def _joined(found: Sequence[Series], key: str, group: int, part: int) -> Line:
    from treegrpo_cli.plots.statistics import Sheaf, draw_again

    known = [one for series in found if len((one := _known(series)).x)]
    if not known:
        return Line(group, part, np.zeros(0), np.zeros(0))
    start = max(series.x[0] for series in known)
    end = max(min(series.x[-1] for series in known), start)
    places = np.unique(np.concatenate([series.x for series in known]))
    grid = places[(places >= start) & (places <= end)]
    if len(grid) > GRID_SIZE:
        grid = np.linspace(start, end, GRID_SIZE)
    curves = np.array([np.interp(grid, series.x, series.y) for series in known])
    band = Sheaf(grid, curves, draw_again(len(known), key)).band()
    return Line(group, part, grid, band.value, band.low, band.high)


def _known(series: Series) -> Series:
    """Without what is not known; of several values at one place the last."""
    x, y = series.x[~np.isnan(series.y)], series.y[~np.isnan(series.y)]
    last = np.append(np.diff(x) > 0, True)[: len(x)]
    return Series(x[last], y[last])
