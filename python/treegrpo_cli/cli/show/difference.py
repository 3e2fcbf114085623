"""One tree -> two nodes of it side by side: what `treegrpo inspect-tree --diff` shows."""

from __future__ import annotations

from treegrpo_cli.cli.chosen import Chosen, the_tree
from treegrpo_cli.cli.show.terminal import Screen, show
from treegrpo_cli.trees.difference import difference_lines


def print_difference(chosen: Chosen, one: int, other: int, screen: Screen) -> None:
    """Print how the paths to two nodes of the one chosen tree differ. Raises UserError where there are more."""
    group, place = the_tree(chosen, "--diff")
    show(lambda width: difference_lines(group[place], one, other, width), screen)
