"""Trees in numpy: levels, leaf sums, values and normalised groups, whole columns at a time."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from treegrpo_cli._core import NO_PARENT

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Trees:
    """What every estimator begins with: levels, leaf sums, values."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        parent = columns["parent"].astype(np.int64)
        self.is_root = parent == NO_PARENT
        self.above = np.where(self.is_root, 0, parent)
        self.tree = columns["tree"].astype(np.int64)
        self.root = np.flatnonzero(self.is_root)[np.argsort(self.tree[self.is_root])]
        self.prompt = columns["prompt"].astype(np.int64)[self.tree]
        self.reward = columns["reward"]
        self.is_scored = ~np.isnan(self.reward)
        self.depth = self._depths()
        order = np.argsort(self.depth, kind="stable")
        bounds = np.searchsorted(self.depth[order], np.arange(self.depth.max() + 2))
        self.levels = [order[start:end] for start, end in pairwise(bounds[1:])]
        self.count = self.sums(self.is_scored.astype(np.float64))
        self.total = self.sums(np.nan_to_num(self.reward))
        with np.errstate(invalid="ignore", divide="ignore"):
            self.value = self.total / self.count

    def _depths(self) -> Ints:
        """Pointer by pointer to the roots."""
        depth, at = np.zeros(len(self.above), dtype=np.int64), self.above.copy()
        level = np.flatnonzero(~self.is_root)
        depth[level] = 1
        while len(level := level[~self.is_root[at[level]]]):
            depth[level] += 1
            at[level] = self.above[at[level]]
        return depth

    def sums(self, own: Floats) -> Floats:
        """Sums over subtrees, the deepest level first."""
        total = own.copy()
        for nodes in reversed(self.levels):
            np.add.at(total, self.above[nodes], total[nodes])
        return total

    def shared_values(self) -> Floats:
        """Values in which all roots of a prompt have the prompt's."""
        value = self.value.copy()
        roots = self.prompt[self.root]
        prompt = np.bincount(roots, self.total[self.root]) / np.bincount(roots, self.count[self.root])
        value[self.root] = prompt[roots]
        return value

    def shown(self, at_leaves: Floats) -> Floats:
        """The mean over the leaves below each node."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums(np.where(self.is_scored, at_leaves, 0.0)) / self.count


def spreads(values: Floats, group: Ints) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Of each group: its mean, its std (ddof 1, eps 1e-6), and whether it has several values that differ."""
    size = np.bincount(group)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group, values) / size
        std = np.sqrt(np.bincount(group, (values - mean[group]) ** 2) / (size - 1)) + 1e-6
    low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return mean, std, (size > 1) & (high - low > 1e-8)


def normalised(values: Floats, group: Ints, scaled: bool) -> Floats:
    """x - mean of its group, over its std where `scaled`; 0 in a group that is flat or of one."""
    with np.errstate(invalid="ignore"):
        mean, std, differs = spreads(values, group)
        centred = values - mean[group]
        return np.where(differs[group], centred / std[group] if scaled else centred, 0.0)


def of_scored(trees: Trees, group: Ints) -> Floats:
    advantage = np.zeros(len(trees.reward))
    advantage[trees.is_scored] = normalised(trees.reward[trees.is_scored], group[trees.is_scored], scaled=True)
    return advantage
