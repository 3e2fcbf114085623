"""Estimators and selection rules in numpy, as one would write them without the core: whole columns, level by level.

Each computes what the core does with its defaults; `bench_core.py` compares the results before it takes times.
Estimators and rules that merge equal states (`anchor`, `state-loo`, `contrast`) or follow continuations (`causal`) go
from node to node with a dictionary: columns do not help, and there is no numpy version of them here.
"""

from collections.abc import Callable
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


def normalised(values: Floats, group: Ints, scaled: bool) -> Floats:
    """x - mean of its group, over its std (ddof 1, eps 1e-6) where `scaled`; 0 in a group that is flat or of one."""
    size = np.bincount(group)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = values - (np.bincount(group, values) / size)[group]
        std = np.sqrt(np.bincount(group, centred**2) / (size - 1))
        low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
        np.minimum.at(low, group, values)
        np.maximum.at(high, group, values)
        normal = centred / (std[group] + 1e-6) if scaled else centred
    return np.where((size[group] > 1) & ((high - low)[group] > 1e-8), normal, 0.0)


def of_scored(trees: Trees, group: Ints) -> Floats:
    advantage = np.zeros(len(trees.reward))
    advantage[trees.is_scored] = normalised(trees.reward[trees.is_scored], group[trees.is_scored], scaled=True)
    return advantage


def grpo(trees: Trees) -> Floats:
    return trees.shown(of_scored(trees, trees.prompt))


def tree_grpo(trees: Trees) -> Floats:
    return trees.shown(of_scored(trees, trees.prompt) + of_scored(trees, trees.tree))


def ancestor(trees: Trees) -> Floats:
    branches = trees.count > 1
    number, total = branches.astype(np.float64), np.where(branches, trees.value, 0.0)
    for nodes in trees.levels:
        number[nodes] += number[trees.above[nodes]]
        total[nodes] += total[trees.above[nodes]]
    with np.errstate(invalid="ignore"):
        return trees.shown(np.where(number > 0, trees.reward - total / np.maximum(number, 1), 0.0))


def parent(trees: Trees) -> Floats:
    value = trees.shared_values()
    return value - value[trees.above]


def siblings_of(trees: Trees) -> Ints:
    """The parent; the first root of the prompt for first turns."""
    _, first = np.unique(trees.prompt[trees.root], return_index=True)
    key = np.arange(len(trees.above))
    key[trees.root] = trees.root[first][trees.prompt[trees.root]]
    return key[trees.above]


def sibling(trees: Trees) -> Floats:
    return normalised(
        trees.shared_values(), np.where(trees.is_root, len(trees.above), siblings_of(trees)), scaled=False
    )


def global_local(trees: Trees) -> Floats:
    value = trees.shared_values()
    return (2 * value - value[trees.root[trees.tree]] - value[trees.above]) / np.sqrt(np.maximum(trees.count, 1))


def depth(trees: Trees) -> Floats:
    return normalised(trees.shared_values(), trees.prompt * (trees.depth.max() + 1) + trees.depth, scaled=True)


ESTIMATORS: dict[str, Callable[[Trees], Floats]] = {
    "grpo": grpo,
    "tree-grpo": tree_grpo,
    "ancestor": ancestor,
    "redistribute": grpo,
    "parent": parent,
    "sibling": sibling,
    "global-local": global_local,
    "depth": depth,
}


def by_estimator(name: str, columns: Columns) -> Floats:
    trees = Trees(columns)
    advantage = np.where(trees.count > 0, ESTIMATORS[name](trees), np.nan)
    advantage[trees.root] = np.where(trees.count[trees.root] > 0, 0.0, np.nan)
    return advantage


def below(columns: Columns, of_turn: Floats) -> tuple[Floats, Ints]:
    """Mean over the children of each node, and their number."""
    has_parent = columns["parent"] != NO_PARENT
    above = columns["parent"][has_parent].astype(np.int64)
    number = np.bincount(above, minlength=len(has_parent))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(above, of_turn[has_parent], minlength=len(has_parent)) / number, number


def mean_of_sampled(columns: Columns, of_token: Floats) -> Floats:
    starts = columns["token_start"].astype(np.int64)
    ends = np.concatenate(([0.0], np.cumsum(np.where(columns["sampled"], of_token, 0.0))))
    number = np.concatenate(([0], np.cumsum(columns["sampled"])))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.diff(ends[starts]) / np.diff(number[starts])


def undecided(columns: Columns, of_turn: Floats) -> Floats:
    mean, number = below(columns, of_turn)
    return mean - 0.1 * (number - 1.0)


def entropy(columns: Columns) -> Floats:
    return undecided(columns, columns["entropy"])


def surprisal(columns: Columns) -> Floats:
    return undecided(columns, mean_of_sampled(columns, -columns["logprobs"].astype(np.float64)))


def bernoulli(columns: Columns) -> Floats:
    mean, _ = below(columns, columns["entropy"])
    is_root = columns["parent"] == NO_PARENT
    at_root = np.zeros(len(columns["prompt"]))
    at_root[columns["tree"][is_root]] = mean[is_root]
    return np.clip(0.5 + 0.2 * (mean - at_root[columns["tree"]]), 0.0, 1.0)


def uct(columns: Columns) -> Floats:
    trees = Trees(columns)
    visits = np.where(trees.is_root, 2 * trees.count, trees.count[trees.above])
    return np.asarray(trees.value + np.sqrt(np.log(visits) / trees.count))


def puct(columns: Columns) -> Floats:
    trees = Trees(columns)
    likely = -np.where(trees.is_root, 0.0, mean_of_sampled(columns, -columns["logprobs"].astype(np.float64)))
    inner = np.bincount(trees.above[~trees.is_root], minlength=len(likely)) > 0
    best = np.full(len(trees.root), -np.inf)
    np.maximum.at(best, trees.tree[inner], likely[inner])
    weight = np.where(inner, np.exp(likely - best[trees.tree]), 0.0)
    prior = weight / np.bincount(trees.tree, weight)[trees.tree]
    return np.asarray(trees.value + prior * np.sqrt(trees.count[trees.root])[trees.tree] / (1 + trees.count))


def confidence(columns: Columns, window: int = 32) -> Floats:
    """Turns whose sampled tokens are all that they hold."""
    starts = columns["token_start"].astype(np.int64)
    sizes = np.diff(starts)
    ends = np.concatenate(([0.0], np.cumsum(columns["logprobs"], dtype=np.float64)))
    width = np.repeat(np.minimum(window, sizes), sizes)
    behind = np.arange(1, len(ends))
    is_full = behind - np.repeat(starts[:-1], sizes) >= width
    means = np.where(is_full, (ends[behind] - ends[np.maximum(behind - width, 0)]) / width, np.inf)
    return -below(columns, np.minimum.reduceat(means, starts[:-1]))[0]


RULES: dict[str, Callable[[Columns], Floats]] = {
    "entropy": entropy,
    "surprisal": surprisal,
    "bernoulli": bernoulli,
    "uct": uct,
    "puct": puct,
    "confidence": confidence,
}
