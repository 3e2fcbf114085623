"""[selection] -> a rule that says where trees branch next: one of the core's, asked with the trees as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import Forest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli.config import SelectionConfig
    from treegrpo_cli.rollout.tree import Tree


class Candidates:
    """Where trees may branch, as a rule sees it.

    `forest` holds the trees, their nodes in the order of their keys, and the rewards known so far; `nodes` are the
    ids there of each tree's candidates. Neither depends on who was finished first.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._orders = [np.array(tree.in_key_order(), dtype=np.uint32) for tree in trees]
        self._starts = np.cumsum([0, *map(len, self._orders)])
        self.forest = Forest.concat([tree.forest for tree in trees], self._orders)
        self.nodes = [
            np.flatnonzero(tree.may_branch(order.tolist())).astype(np.uint32) + np.uint32(start)
            for tree, order, start in zip(trees, self._orders, self._starts[:-1], strict=True)
        ]

    def together(self) -> Candidates:
        """The same as one tree, which has all candidates and the ids of `forest`."""
        one = copy(self)
        one._orders = [np.arange(self.forest.num_nodes, dtype=np.uint32)]
        one._starts = np.zeros(1, dtype=np.int64)
        one.nodes = [np.concatenate(self.nodes)]
        return one

    def by_tree(self, nodes: Sequence[int]) -> list[list[int]]:
        """Split nodes of `forest`: the own ids of each tree's."""
        ids = np.array(nodes, dtype=np.uint32)
        trees = np.searchsorted(self._starts, ids, side="right") - 1
        return [self.in_tree(tree, ids[trees == tree]) for tree in range(len(self._orders))]

    def in_tree(self, tree: int, nodes: NDArray[np.uint32]) -> list[int]:
        """The tree's own ids of these nodes of `forest`; `tree` is its place among the trees."""
        own: list[int] = self._orders[tree][nodes.astype(np.int64) - self._starts[tree]].tolist()
        return own


@dataclass(frozen=True, slots=True)
class CoreRule:
    """A selection rule of the core."""

    name: str
    options: Mapping[str, Any]
    needs_rewards: bool = False
    """Whether it reads rewards, so that leaves are scored as they close."""
    reads_prompt: bool = False
    """Whether it reads all trees of the prompt, so that their rounds wait for each other."""

    async def draw(self, candidates: Candidates, tree: int, n: int, key: Sequence[int]) -> list[int]:
        """Draw up to n of a tree's candidates; they are its own node ids."""
        nodes = candidates.nodes[tree]
        if not len(nodes) or not n:
            return []
        return candidates.in_tree(tree, candidates.forest.select(nodes, n, key, self.name, dict(self.options)))


def load_rule(config: SelectionConfig) -> CoreRule:
    """Return the rule that the config names."""
    return CoreRule(config.rule, config.options)
