"""Scored groups -> counts, depth, branching, and the signal at each depth; one pass, memory by depth only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from treegrpo_cli.trees.draw import count, number
from treegrpo_cli.trees.format import inner_nodes, status_of
from treegrpo_cli.trees.tree_record import TreeRecord

FLAT = 1e-8
"""Values closer than this are equal, as in the core's normaliser."""


@dataclass(slots=True)
class Average:
    """A running mean; None of nothing."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        """Take one more value."""
        self.count += 1
        self.total += value

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
    status: Counter[str] = field(default_factory=Counter)
    reward: Average = field(default_factory=Average)
    leaf_depth: Average = field(default_factory=Average)
    children: Average = field(default_factory=Average)
    levels: defaultdict[int, Level] = field(default_factory=lambda: defaultdict(Level))

    def add_group(self, group: Sequence[TreeRecord]) -> None:
        """Count one prompt's scored trees."""
        self.num_prompts += 1
        siblings: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        rewards: list[float] = []
        for tree, record in enumerate(group):
            self._add_tree(tree, record, siblings, rewards)
        self.num_dead_prompts += not rewards or max(rewards) - min(rewards) <= FLAT
        for (tree, parent), values in siblings.items():
            depth = 1 if tree < 0 else group[tree].nodes[parent]["depth"] + 1
            self.levels[depth].comparisons += len(values) * (len(values) - 1) // 2
            self.levels[depth].decisive += _num_unequal_pairs(values)

    def _add_tree(
        self,
        tree: int,
        record: TreeRecord,
        siblings: defaultdict[tuple[int, int], list[float]],
        rewards: list[float],
    ) -> None:
        inner = inner_nodes(record.nodes)
        self.num_trees += 1
        num_children: Counter[int] = Counter()
        for node in record.nodes:
            self._add_node(node, node["id"] in inner)
            if node["reward"] is not None:
                rewards.append(node["reward"])
            if node["parent"] is None:
                continue
            num_children[node["parent"]] += 1
            if node["value"] is not None:
                siblings[(-1, 0) if node["parent"] == 0 else (tree, node["parent"])].append(node["value"])
        for children in num_children.values():
            self.children.add(children)
            self.num_branching += children > 1

    def _add_node(self, node: dict[str, Any], is_inner: bool) -> None:
        level = self.levels[node["depth"]]
        level.num_nodes += 1
        self.num_nodes += 1
        if not is_inner:
            self.status[status_of(node, is_inner)] += 1
            self.leaf_depth.add(node["depth"])
        if node["reward"] is not None:
            level.reward.add(node["reward"])
            self.reward.add(node["reward"])
        if node["advantage"] is not None and node["parent"] is not None:
            level.advantage.add(node["advantage"])
            level.abs_advantage.add(abs(node["advantage"]))

    def to_json(self) -> dict[str, Any]:
        """The same as an object; means are null where nothing was counted."""
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
            "max_depth": max(self.levels, default=0),
            "num_branching_nodes": self.num_branching,
            "children": self.children.mean,
            "depths": [{"depth": depth, **_level_json(level)} for depth, level in sorted(self.levels.items())],
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
        depth = f"depth {max(self.levels, default=0)}, of a leaf {number(self.leaf_depth.mean)} on average"
        yield Text(f"mean reward {number(self.reward.mean)} · {depth}")
        yield Text(
            f"{number(self.children.mean)} children an inner node on average · {self.num_branching:,} of "
            f"{count(self.children.count, 'inner node')} branch"
        )
        yield Text("")
        yield Text("depth     nodes    comparisons    differ   reward  advantage  |advantage|", style="dim")
        for number_of, level in sorted(self.levels.items()):
            means = [number(average.mean) for average in (level.reward, level.advantage, level.abs_advantage)]
            yield Text(
                f"{number_of:>5}  {level.num_nodes:>8,}  {level.comparisons:>13,}  {level.decisive:>8,}  "
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
