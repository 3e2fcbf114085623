"""Groups of trees -> drawn trees: what `treegrpo inspect-tree` shows unless it is asked for something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from treegrpo_cli.cli.show.terminal import console_of, print_lines
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.tree_record import TreeRecord


def draw(groups: Iterator[Sequence[TreeRecord]], full: bool) -> None:
    """Draw the trees, an empty line between two of them; in `full` no text is cut."""
    console = console_of()
    between = False
    for group in groups:
        for record in group:
            if between:
                print_lines(console, iter([Text("")]))
            print_lines(console, draw_tree(record, console.width, full=full))
            between = True
