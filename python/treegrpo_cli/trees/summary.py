"""Scored groups -> counts, depth, branching, and the signal at each depth; one pass, memory by depth only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from treegrpo_cli.trees.branches import parents_of
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.forest import numbers_of
from treegrpo_cli.trees.texts import count, number
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
    reward: Average = field(default_factory=Average)
    advantage: Average = field(default_factory=Average)
    abs_advantage: Average = field(default_factory=Average)


@dataclass(slots=True)
class Summary:
    """Counts over all groups that were added."""

    num_prompts: int = 0
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

    @np.errstate(over="ignore", invalid="ignore")
    def add_group(self, group: Sequence[TreeRecord]) -> None:
        """Count one prompt's scored trees."""
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
        self._add_levels(depth, reward, np.where(own < 0, np.nan, numbers_of(nodes, "advantage")))
        self._add_comparisons(np.where(own == 0, 0, parent), value, depth)

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

    def _add_comparisons(self, state: Ids, value: Numbers, depth: Ids) -> None:
        """Compare nodes that follow on one state: its children that have a value, of all trees where it is the root."""
        there = ~np.isnan(value) & (state >= 0)
        state, value, depth = state[there], value[there], depth[there]
        order = np.argsort(state, kind="stable")
        state, value, depth = state[order], value[order], depth[order]
        starts = np.flatnonzero(np.diff(state, prepend=-1))
        sizes = np.diff(starts, append=len(state))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            level = self.levels[min(int(depth[start]), MAX_LEVELS)]
            level.comparisons += size * (size - 1) // 2
            level.decisive += _num_unequal_pairs(value[start : start + size].tolist())

    def to_json(self) -> dict[str, Any]:
        """The same as an object; means are null where nothing was counted, `deeper` is all from `MAX_LEVELS` on."""
        return {
            "num_prompts": self.num_prompts,
            "num_dead_prompts": self.num_dead_prompts,
            "num_trees": self.num_trees,
            "num_nodes": self.num_nodes,
            "num_leaves": self.leaf_depth.count,
            "num_scored_leaves": self.reward.count,
            "status": dict(sorted(self.status.items())),
            "reward": self.reward.mean,
            "leaf_depth": self.leaf_depth.mean,
            "max_depth": self.max_depth,
            "num_branching_nodes": self.num_branching,
            "children": self.children.mean,
            "depths": [{"depth": depth, **_level_json(level)} for depth, level in enumerate(self.levels[:MAX_LEVELS])],
            **({"deeper": _level_json(self.levels[MAX_LEVELS])} if self.max_depth >= MAX_LEVELS else {}),
        }

    def lines(self) -> Iterator[Text]:
        """The same for a terminal, within 80 columns."""
        leaves = ", ".join(f"{number_of:,} {status}" for status, number_of in sorted(self.status.items()))
        yield Text.assemble(
            (count(self.num_prompts, "prompt"), "bold"),
            f" ({self.num_dead_prompts:,} with equal rewards) · {count(self.num_trees, 'tree')}",
            f" · {count(self.num_nodes, 'node')}",
        )
        yield Text(f"{count(self.leaf_depth.count, 'leaf', 'leaves')}, {self.reward.count:,} scored: {leaves}")
        depth = f"depth {self.max_depth}, of a leaf {number(self.leaf_depth.mean)} on average"
        yield Text(f"mean reward {number(self.reward.mean)} · {depth}")
        yield Text(
            f"{number(self.children.mean)} children an inner node on average · {self.num_branching:,} of "
            f"{count(self.children.count, 'inner node')} branch"
        )
        yield Text("")
        yield Text("depth     nodes    comparisons    differ   reward  advantage  |advantage|", style="dim")
        for depth_of, level in enumerate(self.levels):
            means = [number(average.mean) for average in (level.reward, level.advantage, level.abs_advantage)]
            name = f"{MAX_LEVELS}+" if depth_of == MAX_LEVELS else depth_of
            yield Text(
                f"{name:>5}  {level.num_nodes:>8,}  {level.comparisons:>13,}  {level.decisive:>8,}  "
                f"{means[0]:>7}  {means[1]:>9}  {means[2]:>11}"
            )


def _level_json(level: Level) -> dict[str, Any]:
    return {
        "num_nodes": level.num_nodes,
        "num_comparisons": level.comparisons,
        "num_decisive_comparisons": level.decisive,
        "num_rewards": level.reward.count,
        "reward": level.reward.mean,
        "advantage": level.advantage.mean,
        "abs_advantage": level.abs_advantage.mean,
    }


def _num_unequal_pairs(values: list[float]) -> int:
    """Pairs whose values differ by more than `FLAT`."""
    ordered = sorted(values)
    unequal = start = 0
    for value in ordered:
        while value - ordered[start] > FLAT:
            start += 1
        unequal += start
    return unequal
