"""A step's metrics the naive way: tree files' nodes, dicts and plain floats; slow, readable, kept for ever."""

from collections.abc import Sequence
from typing import Any

from treegrpo_cli.trees.tree_record import TreeRecord

Node = dict[str, Any]
FLAT = 1e-8


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def std(values: Sequence[float]) -> float:
    """Of a sample; 0 where there is no second value."""
    if len(values) < 2:
        return 0.0
    return float((sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


def rewards_of(trees: Sequence[TreeRecord]) -> list[float]:
    return [node["reward"] for tree in trees for node in tree.nodes if node["reward"] is not None]


def is_dead(group: Sequence[TreeRecord]) -> bool:
    rewards = rewards_of(group)
    return not rewards or max(rewards) - min(rewards) <= FLAT


def path_of(tree: TreeRecord, node: Node) -> list[Node]:
    return [*([] if node["parent"] is None else path_of(tree, tree.nodes[node["parent"]])), node]


def num_sampled(node: Node) -> int:
    return sum(end - start for start, end in node["sampled"])


def leaves_of(tree: TreeRecord) -> list[Node]:
    return [node for node in tree.nodes if not any(other["parent"] == node["id"] for other in tree.nodes)]


def reference_metrics(trees: Sequence[TreeRecord], drop_dead: bool = False) -> dict[str, float]:
    """What `tree_metrics` says of scored trees; signal is of the prompts that are not dropped."""
    by_prompt: dict[str, list[TreeRecord]] = {}
    for tree in trees:
        by_prompt.setdefault(tree.prompt_id, []).append(tree)
    groups = list(by_prompt.values())
    leaves = [(tree, leaf) for tree in trees for leaf in leaves_of(tree)]
    nodes = [node for tree in trees for node in tree.nodes]
    closed = [node["status"] for node in nodes if node["status"] != "open"]
    chain_tokens = sum(num_sampled(node) for tree, leaf in leaves for node in path_of(tree, leaf))
    generated = sum(num_sampled(node) for node in nodes)
    paths = {
        (tree.prompt_id, tuple(token for node in path_of(tree, leaf) for token in node["token_ids"]))
        for tree, leaf in leaves
    }
    learned = [tree for group in groups if not (drop_dead and is_dead(group)) for tree in group]
    turns = [node for tree in learned for node in tree.nodes if node["depth"] > 0 and node["num_leaves"] > 0]
    by_depth: dict[int, list[float]] = {}
    for node in turns:
        by_depth.setdefault(node["depth"], []).append(abs(node["advantage"]))
    return {
        "reward": mean(rewards_of(trees)),
        "reward_std": mean([std(rewards_of(group)) for group in groups]),
        "frac_reward_zero_std": mean([is_dead(group) for group in groups]),
        "completions/mean_length": chain_tokens / max(len(leaves), 1),
        "completions/clipped_ratio": mean([status == "truncated_tokens" for status in closed]),
        "tree/num_prompts": len(groups),
        "tree/num_dead_prompts": sum(is_dead(group) for group in groups),
        "tree/num_nodes": len(nodes),
        "tree/num_leaves": len(leaves),
        "tree/num_distinct_leaves": len(paths),
        "tree/num_errors": sum(leaf["status"] == "error" for _, leaf in leaves),
        "tree/num_pruned": sum(leaf["status"] == "pruned" for _, leaf in leaves),
        "tree/generated_tokens": generated,
        "tree/sharing_ratio": 1 - generated / chain_tokens if chain_tokens else 0.0,
        "tree/intra_reward_std": mean([std(rewards_of([tree])) for tree in trees]),
        "tree/depth_mean": mean([n["depth"] for tree in learned for n in tree.nodes if n["reward"] is not None]),
        "tree/frac_zero_advantage_nodes": mean([node["advantage"] == 0 for node in turns]),
        **{f"tree/abs_advantage_depth_{depth}": mean(sizes) for depth, sizes in by_depth.items()},
        **granularity(learned),
    }


def granularity(trees: Sequence[TreeRecord]) -> dict[str, float]:
    """Every two siblings, one by one; the first turns of all trees of a prompt are siblings."""
    turns = [(tree, n) for tree in trees for n in tree.nodes if n["depth"] > 0 and n["num_leaves"] > 0]
    total = sum(abs(node["advantage"]) for _, node in turns)
    found: dict[str, dict[str, list[float]]] = {}
    for tree, node in turns:
        for level in (f"depth_{node['depth']}", f"tokens_{least(tokens_before(tree, node))}"):
            here = found.setdefault(level, {"gaps": [], "sizes": []})
            here["sizes"].append(abs(node["advantage"]))
            for other_tree, other in turns:
                is_later = (other_tree.tree_id, other["id"]) > (tree.tree_id, node["id"])
                if is_later and state_of(tree, node) == state_of(other_tree, other):
                    here["gaps"].append(abs(node["value"] - other["value"]))
    metrics: dict[str, float] = {}
    for level, here in found.items():
        metrics[f"tree/comparisons_{level}"] = len(here["gaps"])
        metrics[f"tree/decisive_comparisons_{level}"] = sum(gap > FLAT for gap in here["gaps"])
        metrics[f"tree/gap_{level}"] = mean(here["gaps"])
        metrics[f"tree/abs_advantage_share_{level}"] = sum(here["sizes"]) / total if total else 0.0
    return metrics


def state_of(tree: TreeRecord, node: Node) -> tuple[Any, ...]:
    return (tree.prompt_id, tree.tree_id if node["parent"] else None, node["parent"])


def tokens_before(tree: TreeRecord, node: Node) -> int:
    return sum(len(above["token_ids"]) for above in path_of(tree, node)[1:-1])


def least(position: int) -> int:
    """Of 0, 1, 4, 16, 64, ... the greatest that is no more."""
    bound = 1
    while bound * 4 <= position:
        bound *= 4
    return bound if position else 0
