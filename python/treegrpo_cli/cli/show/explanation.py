"""One tree -> how a node of it came by its advantage: what `treegrpo inspect-tree --explain` shows."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from treegrpo_cli.cli.chosen import Chosen
from treegrpo_cli.cli.show.terminal import console_of, print_lines
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.explain import explain


def print_explanation(chosen: Chosen, node: int) -> None:
    """Print how `node` of the one tree that was chosen came by its advantage. Raises UserError where there are more."""
    print_lines(console_of(), map(Text, _explained(chosen, node)))


def _explained(chosen: Chosen, node: int) -> Iterator[str]:
    """Lines on a node of the one tree that was chosen."""
    group, ids = next(chosen)
    if len(ids) > 1 or next(chosen, None) is not None:
        raise UserError("--explain needs one tree: choose it by --prompt-id, --tree-id and --step")
    [place] = [place for place, record in enumerate(group) if record.tree_id in ids]
    return explain(group, place, node)
