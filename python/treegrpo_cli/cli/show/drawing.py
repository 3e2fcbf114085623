"""Groups of trees -> drawn trees: what `treegrpo inspect-tree` shows unless it is asked for something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from treegrpo_cli.cli.show.terminal import Screen, show
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.tree_record import TreeRecord


def draw(groups: Iterator[Sequence[TreeRecord]], screen: Screen, *, full: bool) -> None:
    """Draw the trees, an empty line between two of them; in `full` no text is cut."""
    show(lambda width: _lines(groups, width, full), screen)


def _lines(groups: Iterator[Sequence[TreeRecord]], width: int, full: bool) -> Iterator[Text]:
    is_first = True
    for group in groups:
        for record in group:
            if not is_first:
                yield Text("")
            yield from draw_tree(record, width, full=full)
            is_first = False
