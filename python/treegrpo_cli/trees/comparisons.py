"""Columns of scored trees -> at which depth, and how many tokens behind the prompt, siblings are told apart.

A comparison is a pair of siblings that both have a value; it decides something where their values differ. All roots of
a prompt are one state, so that first turns of all its trees are siblings, and chains compare there and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.types import FLAT

Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]

BINS = 4
"""Positions are told apart by powers of it: 0, 1 to 3, 4 to 15, 16 to 63, 64 to 255, ..."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Sums by level, [levels]."""

    count: Ids
    decisive: Ids
    gap: Numbers
    """Of the absolute differences of values."""


def compare_siblings(state: Ids, value: Numbers, level: Ids, num_levels: int) -> Comparisons:
    """Compare all nodes that have one `state` (-1 = none) and a value (NaN = none); a level is that of its nodes.

    Values differ where more than `FLAT` lies between neighbours in their order.
    """
    there = np.flatnonzero((state >= 0) & ~np.isnan(value))
    there = there[np.lexsort((value[there], state[there]))]
    state, value, level = state[there], value[there], level[there]
    is_first = np.diff(state, prepend=-1) != 0
    starts = np.flatnonzero(is_first)
    sizes = np.diff(starts, append=len(state))
    of_state = level[starts]
    runs = np.flatnonzero(is_first | (np.diff(value, prepend=0.0) > FLAT))
    equal, of_run = _pairs(np.diff(runs, append=len(state))), level[runs]
    rank = np.arange(len(state)) - np.repeat(starts, sizes)
    gaps = value * (2 * rank - np.repeat(sizes, sizes) + 1)
    count = _summed(of_state, _pairs(sizes), num_levels).astype(np.int64)
    return Comparisons(
        count,
        count - _summed(of_run, equal, num_levels).astype(np.int64),
        np.maximum(_summed(level, gaps, num_levels), 0.0),
    )


def positions(parent: Ids, depth: Ids, num_tokens: Ids) -> Ids:
    """The number of tokens between the prompt and each node, [N]; `parent` is -1 above a root."""
    position = np.zeros(len(parent), dtype=np.int64)
    order = np.argsort(depth, kind="stable")
    ends = np.cumsum(np.bincount(depth)).tolist()
    for start, end in pairwise(ends[1:]):  # first turns are at 0
        nodes = order[start:end]
        position[nodes] = position[parent[nodes]] + num_tokens[parent[nodes]]
    return position


def bins_of(position: Ids) -> Ids:
    """The bin of each position, exactly, [N]."""
    bounds = BINS ** np.arange(0, 31, dtype=np.int64)
    return np.searchsorted(bounds, position, side="right").astype(np.int64)


def first_of(bin_: int) -> int:
    """The least position in a bin.

    >>> [first_of(bin_) for bin_ in range(5)]
    [0, 1, 4, 16, 64]
    """
    return int(BINS ** (bin_ - 1)) if bin_ else 0


def _pairs(sizes: Ids) -> Ids:
    return sizes * (sizes - 1) // 2


def _summed(level: Ids, of: NDArray[np.generic], num_levels: int) -> Numbers:
    return np.bincount(level, of.astype(np.float64), num_levels).astype(np.float64)
