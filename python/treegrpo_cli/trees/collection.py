"""Many trees: a list of them, and what reads them from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, overload

from treegrpo_cli.trees.framed import Framed
from treegrpo_cli.trees.texts import count
from treegrpo_cli.trees.tree_record import TreeRecord

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import pyarrow as pa  # type: ignore[import-untyped]

    from treegrpo_cli.trees.frames import Rows


class Trees(Framed, list[TreeRecord]):
    """A list of trees that is shown as a table, and can be made one.

    >>> root = {"id": 0, "parent": None, "reward": None}
    >>> trees = Trees(TreeRecord(prompt_id="q1", tree_id=place, nodes=[root]) for place in range(3))
    >>> trees, trees[1:]
    (Trees(3 trees of 1 prompt, 3 nodes), Trees(2 trees of 1 prompt, 2 nodes))
    """

    @overload
    def __getitem__(self, place: SupportsIndex) -> TreeRecord: ...
    @overload
    def __getitem__(self, place: slice) -> Trees: ...
    def __getitem__(self, place: SupportsIndex | slice) -> TreeRecord | Trees:
        return Trees(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

    def __repr__(self) -> str:
        prompts = count(len({tree.prompt_id for tree in self}), "prompt")
        nodes = count(sum(len(tree.nodes) for tree in self), "node")
        return f"Trees({count(len(self), 'tree')} of {prompts}, {nodes})"


class TreeReader(Iterator[TreeRecord]):
    """The trees of a file, one in memory at a time; `Trees(reader)` keeps them all."""

    def __init__(self, trees: Iterator[TreeRecord], path: str | Path) -> None:
        self._trees, self.path = trees, path

    def __next__(self) -> TreeRecord:
        return next(self._trees)

    def to_pandas(self, rows: Rows = "nodes") -> pd.DataFrame:
        """Read all that is left and return it as `Trees.to_pandas` does."""
        return Trees(self).to_pandas(rows)

    def to_arrow(self, rows: Rows = "nodes") -> pa.Table:
        """Read all that is left and return it as `Trees.to_arrow` does."""
        return Trees(self).to_arrow(rows)

    def __repr__(self) -> str:
        return f"TreeReader({str(self.path)!r})"
