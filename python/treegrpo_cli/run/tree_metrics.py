"""A step's trees + their scores -> metrics under the names of `metrics.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from treegrpo_cli.rewards import LeafReward
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_file import TreeRecord

if TYPE_CHECKING:
    from treegrpo_cli._core import Forest, Scores

Group = Sequence[TreeRecord]

FLAT = 1e-8
"""Rewards closer than this are equal, as in the core's normaliser."""


def rewards_of(records: Group) -> list[float]:
    """Rewards of the scored leaves."""
    return [node["reward"] for record in records for node in record.nodes if node.get("reward") is not None]


def is_dead(group: Group) -> bool:
    """Whether a prompt's rewards are all equal, so that it says nothing."""
    rewards = rewards_of(group)
    return not rewards or max(rewards) - min(rewards) <= FLAT


def tree_metrics(groups: Sequence[Group], forest: Forest, scores: Scores) -> dict[str, float]:
    """Metrics of one step; `forest` and `scores` are those that were learned from, `groups` all that were grown.

    `tree/step_tokens` counts prompt, generated and observation tokens, each node once.
    """
    stats = RolloutStats()
    for group in groups:
        stats.add_group(group)
    trees = [[record] for group in groups for record in group]
    return {
        "reward": _mean(stats.rewards),
        "reward_std": _mean([_std(rewards_of(group)) for group in groups]),
        "frac_reward_zero_std": _mean([float(is_dead(group)) for group in groups]),
        "completions/mean_length": stats.chain_tokens / max(stats.num_leaves, 1),
        "completions/clipped_ratio": _clipped_ratio(groups),
        "tree/num_nodes": float(stats.num_turns + stats.num_trees),
        "tree/num_leaves": float(stats.num_leaves),
        "tree/num_distinct_leaves": float(stats.num_distinct_leaves),
        "tree/num_tool_calls": float(stats.num_tool_calls),
        "tree/num_errors": float(stats.num_errors),
        "tree/generated_tokens": float(stats.generated_tokens),
        "tree/sharing_ratio": stats.sharing_ratio,
        "tree/intra_reward_std": _mean([_std(rewards_of(tree)) for tree in trees]),
        "tree/step_tokens": float(sum(len(node.get("token_ids", ())) for [tree] in trees for node in tree.nodes)),
    } | _signal(forest, scores)


def reward_metrics(leaves: Sequence[LeafReward]) -> dict[str, float]:
    """Mean and deviation of what each function gave the leaves that it scored, weights aside: TRL's metrics."""
    given: dict[str, list[float]] = {}
    for leaf in leaves:
        for name, reward in leaf.by_function.items():
            given.setdefault(name, []).extend([] if reward is None else [reward])
    means = {f"rewards/{name}/mean": _mean(rewards) for name, rewards in given.items() if rewards}
    return means | {f"rewards/{name}/std": _std(rewards) for name, rewards in given.items() if rewards}


def _signal(forest: Forest, scores: Scores) -> dict[str, float]:
    """Depth of leaves, share of turns that learn nothing, and the mean |advantage| of the turns at each depth."""
    depth, advantage = scores.depth, scores.advantage
    turns = (depth > 0) & (scores.num_leaves > 0)
    leaves = ~np.isnan(forest.columns()["reward"])
    metrics = {
        "tree/depth_mean": _mean(depth[leaves].tolist()),
        "tree/frac_zero_advantage_nodes": _mean((advantage[turns] == 0).tolist()),
    }
    for level in np.unique(depth[turns]):
        metrics[f"tree/abs_advantage_depth_{level}"] = _mean(np.abs(advantage[turns & (depth == level)]).tolist())
    return metrics


def _clipped_ratio(groups: Sequence[Group]) -> float:
    status = [node.get("status") for group in groups for record in group for node in record.nodes]
    closed = [name for name in status if name not in (None, "open")]
    return _mean([float(name == "truncated_tokens") for name in closed])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
