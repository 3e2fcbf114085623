"""Estimators and selection rules in numpy, as one would write them without the core: whole columns, level by level.

Each computes what the core does with its defaults; `bench_core.py` compares the results before it takes times.
Those that merge equal states or follow continuations are in `numpy_states.py`.
"""

from collections.abc import Callable

import numpy as np
from treegrpo_cli._core import NO_PARENT

from tests.benchmarks.numpy_states import anchor, causal, contrast, state_loo
from tests.benchmarks.numpy_trees import Columns, Floats, Ints, Trees, normalised, of_scored


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
    "anchor": anchor,
}
WEIGHING: dict[str, Callable[[Trees], tuple[Floats, Floats]]] = {"causal": causal, "state-loo": state_loo}


def by_estimator(name: str, columns: Columns) -> tuple[Floats, Floats | None]:
    """Advantages, and weights where the estimator has its own; a root's, never trained, is that of its leaves."""
    trees = Trees(columns)
    credit, weight = WEIGHING[name](trees) if name in WEIGHING else (ESTIMATORS[name](trees), None)
    advantage = np.where(trees.count > 0, credit, np.nan)
    advantage[trees.root] = np.where(trees.count[trees.root] > 0, 0.0, np.nan)
    if weight is not None:
        weight[trees.root] = trees.count[trees.root]
    return advantage, weight


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
    "contrast": contrast,
    "confidence": confidence,
}
