"""One tree -> how a node of it came by its advantage: what `treegrpo inspect-tree --explain` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from treegrpo_cli.cli.chosen import Chosen, the_tree
from treegrpo_cli.cli.show.terminal import Screen, show
from treegrpo_cli.trees.explain import explain
from treegrpo_cli.trees.texts import hanging, visible
from treegrpo_cli.trees.tree_record import TreeRecord


def print_explanation(chosen: Chosen, node: int, screen: Screen) -> None:
    """Print how `node` of the one tree that was chosen came by its advantage. Raises UserError where there are more."""
    group, place = the_tree(chosen, "--explain")
    show(lambda width: explanation_lines(group, place, node, width), screen)


def explanation_lines(group: Sequence[TreeRecord], place: int, node: int, width: int) -> Iterator[Text]:
    """Yield the explanation of a node of `group[place]`, its lines wrapped at `width` cells."""
    for line in explain(group, place, node):
        yield from map(Text, hanging(visible(line), width))
