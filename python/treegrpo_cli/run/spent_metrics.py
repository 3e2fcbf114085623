"""A step's groups -> metrics of what was spent on them, and on whom, under the names of `metric_names.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treegrpo_cli.config import RolloutConfig
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.rollout.tree import Tree


def spent_metrics(groups: Sequence[Grown], rollout: RolloutConfig, seconds: float) -> dict[str, float]:
    """What all groups of a step took, those of prompts that were not trained on too, and where expansions went."""
    with_trees = [grown for grown in groups if grown.trees]
    planned = len(with_trees) * rollout.num_trees * rollout.num_expansions * rollout.num_rounds
    started = sum(_num_expansions(grown) for grown in with_trees)
    rescues = [grown for grown in with_trees if grown.num_rescues]
    num_rescues = sum(grown.num_rescues for grown in rescues)
    alive = sum(_num_expansions(grown) for grown in with_trees if grown.is_alive)
    return {
        "budget/step_tokens": float(_num_tokens(with_trees)),
        "budget/step_tool_calls": float(_num_tool_calls(with_trees)),
        "budget/step_leaves": float(sum(_num_leaves(grown) for grown in with_trees)),
        "budget/step_seconds": seconds,
        "budget/withheld_expansions": float(max(planned - (started - num_rescues), 0)),
        "tree/num_expansions": float(started),
        "tree/frac_expansions_alive": alive / started if started else 0.0,
        "tree/num_rescue_expansions": float(num_rescues),
        "tree/num_rescue_prompts": float(len(rescues)),
        "tree/num_rescued_prompts": float(sum(grown.is_alive for grown in rescues)),
        "tree/max_prompt_leaves": float(max(map(_num_leaves, with_trees), default=0)),
    }


def chain_tool_calls(trees: Sequence[Tree]) -> int:
    """Count the tool calls that the same leaves had taken as chains, each turn's once a leaf below it."""
    return sum(
        tree.turns[node].num_tool_calls
        for tree in trees
        for leaf in tree.forest.leaf_columns()["node"].tolist()
        for node in tree.forest.path(leaf)
    )


def discard_metrics(discarded: Sequence[Grown], num_refills: int) -> dict[str, float]:
    """What was spent on prompts that were not trained on, which the step's other counts hold too; all 0 without any."""
    return {
        "tree/num_refills": float(num_refills),
        "tree/num_discarded_prompts": float(len(discarded)),
        "tree/discarded_tokens": float(_num_tokens(discarded)),
        "tree/discarded_tool_calls": float(_num_tool_calls(discarded)),
        "time/discarded": sum(grown.seconds for grown in discarded),
    }


def _num_leaves(grown: Grown) -> int:
    return sum(tree.num_leaves for tree in grown.trees)


def _num_expansions(grown: Grown) -> int:
    """All but the first chain of each tree."""
    return _num_leaves(grown) - len(grown.trees)


def _num_tokens(groups: Sequence[Grown]) -> int:
    return sum(tree.generated_tokens for grown in groups for tree in grown.trees)


def _num_tool_calls(groups: Sequence[Grown]) -> int:
    return sum(tree.num_tool_calls for grown in groups for tree in grown.trees)
