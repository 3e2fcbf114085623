"""Scored groups -> counts, depth, branching, where siblings are told apart, and the signal; memory by depth only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.trees.branches import parents_of
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.comparisons import bins_of, compare_siblings, first_of, positions
from treegrpo_cli.trees.forest import numbers_of
from treegrpo_cli.trees.tree_record import TreeRecord
from treegrpo_cli.types import FLAT

MAX_LEVELS = 200
"""Depths that are told one by one; what is deeper is one level."""

Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(slots=True)
class Average:
    """A running mean; None of nothing."""

    count: int = 0
    total: float = 0.0

    def add(self, count: int, total: float) -> None:
        """Take so many more values, which add up to `total`."""
        self.count += int(count)
        self.total += float(total)

    @property
    def mean(self) -> float | None:
        """The mean so far."""
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Level:
    """What is known of one depth.

    `comparisons` counts pairs of siblings that both have a value, `decisive` those whose values differ.
    All roots of a prompt are one state, so the first turns of all its trees are siblings.
    """

    num_nodes: int = 0
    comparisons: int = 0
    decisive: int = 0
    gap: Average = field(default_factory=Average)
    """Of the absolute differences of values, over comparisons."""
    reward: Average = field(default_factory=Average)
    advantage: Average = field(default_factory=Average)
    abs_advantage: Average = field(default_factory=Average)


@dataclass(frozen=True, slots=True)
class Turns:
    """Columns of nodes: what they follow on (-1 = nothing), their value, and their advantage; NaN on roots."""

    state: Ids
    value: Numbers
    advantage: Numbers


@dataclass(slots=True)
class Summary:
    """Counts over all groups that were added."""

    num_prompts: int = 0
    num_discarded_prompts: int = 0
    """Those that were not trained on, as `meta.discarded` of their trees says: nothing else counts them."""
    num_discarded_trees: int = 0
    num_trees: int = 0
    num_nodes: int = 0
    num_branching: int = 0
    num_dead_prompts: int = 0
    max_depth: int = 0
    status: Counter[str] = field(default_factory=Counter)
    reward: Average = field(default_factory=Average)
    leaf_depth: Average = field(default_factory=Average)
    children: Average = field(default_factory=Average)
    levels: list[Level] = field(default_factory=list)
    positions: list[Level] = field(default_factory=list)
    """The same of turns alone, by the `bins_of` tokens behind the prompt; of trees that have tokens."""

    @np.errstate(over="ignore", invalid="ignore")
    def add_group(self, group: Sequence[TreeRecord]) -> None:
        """Count one prompt's scored trees; those that were discarded by themselves."""
        num_trees = len(group)
        group = [record for record in group if not (record.meta or {}).get("discarded")]
        self.num_discarded_trees += num_trees - len(group)
        self.num_discarded_prompts += not group
        if not group:
            return
        nodes = list(chain.from_iterable(record.nodes for record in group))
        sizes = [len(record.nodes) for record in group]
        starts = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
        own = np.concatenate([parents_of(record.nodes) for record in group])
        parent = np.where(own < 0, -1, own + starts)
        depth = np.array(column_of(nodes, "depth"), dtype=np.int64)
        reward, value = numbers_of(nodes, "reward"), numbers_of(nodes, "value")
        self.num_prompts += 1
        self.num_trees += len(group)
        self.num_nodes += len(nodes)
        self.max_depth = max(self.max_depth, int(depth.max()))
        scored = reward[~np.isnan(reward)]
        self.reward.add(len(scored), scored.sum())
        self.num_dead_prompts += bool(not len(scored) or scored.max() - scored.min() <= FLAT)
        self._add_shape(column_of(nodes, "status"), parent, depth)
        turns = Turns(np.where(own == 0, 0, parent), value, np.where(own < 0, np.nan, numbers_of(nodes, "advantage")))
        self._add_levels(depth, reward, turns.advantage)
        self._add_comparisons(self.levels, np.minimum(depth, MAX_LEVELS), turns.state, value)
        if None not in (token_ids := column_of(nodes, "token_ids")):
            self._add_positions(parent, depth, np.array(list(map(len, token_ids)), dtype=np.int64), turns)

    def _add_shape(self, status: Sequence[str | None], parent: Ids, depth: Ids) -> None:
        num_children = np.bincount(parent[parent >= 0], minlength=len(parent))
        inner = num_children > 0
        self.children.add(inner.sum(), num_children.sum())
        self.num_branching += int((num_children > 1).sum())
        self.leaf_depth.add((~inner).sum(), depth[~inner].sum())
        self.status.update(status[leaf] or "done" for leaf in np.flatnonzero(~inner).tolist())

    def _add_levels(self, depth: Ids, reward: Numbers, advantage: Numbers) -> None:
        level = np.minimum(depth, MAX_LEVELS)
        self.levels += [Level() for _ in range(int(level.max()) + 1 - len(self.levels))]
        for place, number_of in enumerate(np.bincount(level).tolist()):
            self.levels[place].num_nodes += number_of
        for name, column in (("reward", reward), ("advantage", advantage), ("abs_advantage", np.abs(advantage))):
            there = ~np.isnan(column)
            counts, totals = np.bincount(level[there]), np.bincount(level[there], weights=column[there])
            for found, number_of, total in zip(self.levels, counts.tolist(), totals.tolist(), strict=False):
                getattr(found, name).add(number_of, total)

    def _add_comparisons(self, levels: list[Level], level: Ids, state: Ids, value: Numbers) -> None:
        """Compare nodes that follow on one state: its children that have a value, of all trees where it is the root."""
        found = compare_siblings(state, value, level, len(levels))
        columns = (found.count.tolist(), found.decisive.tolist(), found.gap.tolist())
        for into, count_of, decisive, gap in zip(levels, *columns, strict=True):
            into.comparisons += count_of
            into.decisive += decisive
            into.gap.add(count_of, gap)

    def _add_positions(self, parent: Ids, depth: Ids, num_tokens: Ids, turn: Turns) -> None:
        """Count turns by the number of tokens between the prompt and them."""
        level = bins_of(positions(parent, depth, num_tokens))
        self.positions += [Level() for _ in range(int(level.max()) + 1 - len(self.positions))]
        size, there = np.abs(turn.advantage), ~np.isnan(turn.advantage)
        counts = np.bincount(level[there], minlength=len(self.positions))
        totals = np.bincount(level[there], size[there], len(self.positions))
        for found, number_of, total in zip(self.positions, counts.tolist(), totals.tolist(), strict=True):
            found.num_nodes += number_of
            found.abs_advantage.add(number_of, total)
        self._add_comparisons(self.positions, level, turn.state, turn.value)

    def to_json(self) -> dict[str, Any]:
        """The same as an object; means are null where nothing was counted, `deeper` is all from `MAX_LEVELS` on."""
        return {
            "num_prompts": self.num_prompts,
            "num_dead_prompts": self.num_dead_prompts,
            "num_trees": self.num_trees,
            "num_discarded_prompts": self.num_discarded_prompts,
            "num_discarded_trees": self.num_discarded_trees,
            "num_nodes": self.num_nodes,
            "num_leaves": self.leaf_depth.count,
            "num_scored_leaves": self.reward.count,
            "status": dict(sorted(self.status.items())),
            "reward": self.reward.mean,
            "leaf_depth": self.leaf_depth.mean,
            "max_depth": self.max_depth,
            "num_branching_nodes": self.num_branching,
            "children": self.children.mean,
            "depths": [
                {"depth": depth, **_level_json(level), "abs_advantage_share": share}
                for (depth, level), share in zip(
                    enumerate(self.levels[:MAX_LEVELS]), shares_of(self.levels), strict=False
                )
            ],
            **({"deeper": _level_json(self.levels[MAX_LEVELS])} if self.max_depth >= MAX_LEVELS else {}),
            "positions": [
                {"from_tokens": first_of(bin_), **_turns_json(level), "abs_advantage_share": share}
                for (bin_, level), share in zip(enumerate(self.positions), shares_of(self.positions), strict=True)
            ],
        }


def shares_of(levels: Sequence[Level]) -> list[float | None]:
    """Of the sum of |advantage| of all turns, what each level has; None where that is 0."""
    total = sum(level.abs_advantage.total for level in levels)
    return [level.abs_advantage.total / total if total else None for level in levels]


def _level_json(level: Level) -> dict[str, Any]:
    return {
        "num_nodes": level.num_nodes,
        "num_comparisons": level.comparisons,
        "num_decisive_comparisons": level.decisive,
        "gap": level.gap.mean,
        "num_rewards": level.reward.count,
        "reward": level.reward.mean,
        "advantage": level.advantage.mean,
        "abs_advantage": level.abs_advantage.mean,
    }


def _turns_json(level: Level) -> dict[str, Any]:
    return {
        "num_turns": level.num_nodes,
        "num_comparisons": level.comparisons,
        "num_decisive_comparisons": level.decisive,
        "gap": level.gap.mean,
        "abs_advantage": level.abs_advantage.mean,
    }
