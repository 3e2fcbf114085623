"""A step's forest + its scores -> metrics under the names of `metric_names.py`, a column at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT
from treegrpo_cli.rewards import LeafReward
from treegrpo_cli.trees.comparisons import bins_of, compare_siblings, first_of, positions
from treegrpo_cli.types import FLAT, NodeStatus

if TYPE_CHECKING:
    from treegrpo_cli._core import Forest, Scores


class RewardGroups:
    """Rewards of scored leaves by a key of theirs: `keys` of all groups, also of those without any; one entry each."""

    def __init__(self, keys: NDArray[Any], of_leaf: NDArray[Any], reward: NDArray[np.float64]) -> None:
        self.keys, first = np.unique(keys, return_index=True)
        self.order = np.argsort(first)
        """Places of the groups in the order in which they came."""
        scored = ~np.isnan(reward)
        group, reward = np.searchsorted(self.keys, of_leaf[scored]), reward[scored]
        num_groups = len(self.keys)
        self.count = np.bincount(group, minlength=num_groups)
        mean = np.bincount(group, reward, num_groups) / np.maximum(self.count, 1)
        squares = np.bincount(group, (reward - mean[group]) ** 2, num_groups)
        self.std = np.where(self.count > 1, np.sqrt(squares / np.maximum(self.count - 1, 1)), 0.0)
        """Of a sample; 0 where there is no second reward."""
        low, high = np.full(num_groups, np.inf), np.full(num_groups, -np.inf)
        np.minimum.at(low, group, reward)
        np.maximum.at(high, group, reward)
        self.is_dead = ~(high - low > FLAT)
        """All rewards are equal, or there are none, so that the group says nothing."""


def reward_groups(forest: Forest) -> RewardGroups:
    """Rewards by prompt."""
    leaves = forest.leaf_columns()
    return RewardGroups(forest.columns()["prompt"], leaves["prompt"], leaves["reward"])


def learned_prompts(forest: Forest, dead_prompts: str) -> NDArray[np.uint32]:
    """Prompts to train on, in the order in which they came: all, or where dead ones are not kept the others."""
    groups = reward_groups(forest)
    kept = groups.order if dead_prompts == "keep" else groups.order[~groups.is_dead[groups.order]]
    return groups.keys[kept]


def tree_metrics(forest: Forest, scores: Scores, learned: NDArray[np.uint32]) -> dict[str, float]:
    """Metrics of one step, of all trees but for those of signal, which are of the prompts that were learned from."""
    leaves, columns = forest.leaf_columns(), forest.columns()
    groups = reward_groups(forest)
    trees = RewardGroups(np.arange(forest.num_trees), leaves["tree"], leaves["reward"])
    status, num_leaves = columns["status"], len(leaves["node"])
    chain_tokens, generated = int(leaves["gen_tokens"].sum()), int(forest.gen_tokens().sum())
    return {
        "reward": _mean(leaves["reward"][~np.isnan(leaves["reward"])]),
        "reward_std": _mean(groups.std),
        "frac_reward_zero_std": _mean(groups.is_dead),
        "completions/mean_length": chain_tokens / max(num_leaves, 1),
        "completions/clipped_ratio": _mean(status[status != NodeStatus.OPEN] == NodeStatus.TRUNCATED_TOKENS),
        "tree/num_prompts": float(len(groups.keys)),
        "tree/num_dead_prompts": float(groups.is_dead.sum()),
        "tree/num_nodes": float(forest.num_nodes),
        "tree/num_leaves": float(num_leaves),
        "tree/num_distinct_leaves": float((leaves["same_as"] == np.arange(num_leaves)).sum()),
        "tree/num_errors": float((leaves["status"] == NodeStatus.ERROR).sum()),
        "tree/num_pruned": float((leaves["status"] == NodeStatus.PRUNED).sum()),
        "tree/generated_tokens": float(generated),
        "tree/sharing_ratio": 1 - generated / chain_tokens if chain_tokens else 0.0,
        "tree/intra_reward_std": _mean(trees.std),
    } | _signal(forest, scores, learned)


def reward_metrics(leaves: Sequence[LeafReward]) -> dict[str, float]:
    """Mean and deviation of what each function gave the leaves that it scored, weights aside: TRL's metrics.

    Where rewards are flipped, the mean of the true ones, and the share of those that are told as another.
    """
    given: dict[str, list[float]] = {}
    for leaf in leaves:
        for name, reward in leaf.by_function.items():
            given.setdefault(name, []).extend([] if reward is None else [reward])
    pairs = [(leaf.reward, leaf.true_reward) for leaf in leaves if leaf.true_reward is not None]
    flips = {
        "true_reward": _mean(np.array([true for _, true in pairs])),
        "frac_rewards_flipped": _mean(np.array([reward != true for reward, true in pairs])),
    }
    means = (flips if pairs else {}) | {
        f"rewards/{name}/mean": _mean(np.array(rewards)) for name, rewards in given.items() if rewards
    }
    return means | {f"rewards/{name}/std": _std(rewards) for name, rewards in given.items() if rewards}


def _signal(forest: Forest, scores: Scores, learned: NDArray[np.uint32]) -> dict[str, float]:
    """Depth of leaves, share of turns that learn nothing, and the mean |advantage| of the turns at each depth."""
    columns = forest.columns()
    is_learned = np.isin(columns["prompt"], learned)[columns["tree"]]
    depth, advantage = scores.depth, scores.advantage
    turns = is_learned & (depth > 0) & (scores.num_leaves > 0)
    leaves = is_learned & ~np.isnan(columns["reward"])
    level, size = depth[turns], np.abs(advantage[turns])
    count = np.bincount(level)
    mean = np.bincount(level, size) / np.maximum(count, 1)
    return {
        "tree/depth_mean": _mean(depth[leaves]),
        "tree/frac_zero_advantage_nodes": _mean(size == 0),
        **{f"tree/abs_advantage_depth_{depth}": float(mean[depth]) for depth in np.flatnonzero(count).tolist()},
        **_granularity(forest, scores, turns),
    }


def _granularity(forest: Forest, scores: Scores, turns: NDArray[np.bool_]) -> dict[str, float]:
    """Where these turns' siblings are told apart: by depth, and by the tokens between the prompt and the turns."""
    columns, depth = forest.columns(), scores.depth.astype(np.int64)
    parent = np.where(columns["parent"] == NO_PARENT, -1, columns["parent"].astype(np.int64))
    roots, prompt = columns["root"].astype(np.int64), columns["prompt"]
    _, first, same = np.unique(prompt, return_index=True, return_inverse=True)
    shared = roots[first][same][columns["tree"]]  # all roots of a prompt are one state
    state = np.where(turns, np.where(depth == 1, shared, parent), -1)
    num_tokens = np.diff(columns["token_start"].astype(np.int64))
    bins, size = bins_of(positions(parent, depth, num_tokens)), np.where(turns, np.abs(scores.advantage), 0.0)
    metrics: dict[str, float] = {}
    for level, name in ((depth, "depth_{}".format), (bins, lambda bin_: f"tokens_{first_of(bin_)}")):
        num_levels = int(level.max(initial=0)) + 1
        found = compare_siblings(state, scores.value, level, num_levels)
        share = np.bincount(level, size, num_levels) / max(size.sum(), np.finfo(float).tiny)
        for place in np.unique(level[turns]).tolist():
            metrics |= {
                f"tree/comparisons_{name(place)}": float(found.count[place]),
                f"tree/decisive_comparisons_{name(place)}": float(found.decisive[place]),
                f"tree/gap_{name(place)}": float(found.gap[place] / max(found.count[place], 1)),
                f"tree/abs_advantage_share_{name(place)}": float(share[place]),
            }
    return metrics


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
