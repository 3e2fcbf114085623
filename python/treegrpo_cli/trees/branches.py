"""Nodes -> who hangs below whom, as two columns: what walks over a tree of any depth needs, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.format import Fields


class Branches:
    """Children of N nodes, in the order of the file."""

    def __init__(self, nodes: Sequence[Fields]) -> None:
        self.parent = parents_of(nodes)
        self.num_children = np.bincount(self.parent[1:], minlength=len(nodes))
        """[N]."""
        self._order = np.argsort(self.parent[1:], kind="stable") + 1
        self._start = np.concatenate(([0], np.cumsum(self.num_children)))

    def is_inner(self, node: int) -> bool:
        """Whether it has children."""
        return bool(self.num_children[node])

    def children(self, node: int) -> list[int]:
        """Its children, ascending."""
        below: list[int] = self._order[self._start[node] : self._start[node + 1]].tolist()
        return below

    def chain(self, node: int) -> list[int]:
        """The node and what follows it without a sibling, to the first that branches or ends."""
        chain = [node]
        while self.num_children[node] == 1:
            node = int(self._order[self._start[node]])
            chain.append(node)
        return chain


def parents_of(nodes: Sequence[Fields]) -> NDArray[np.int64]:
    """The parents, -1 of the root, [N]."""
    return np.array([-1, *column_of(nodes, "parent")[1:]], dtype=np.int64)
