"""Rows of text -> a table for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table


class Rows(NamedTuple):
    """A table: its title, the heads of its columns, and its cells."""

    title: str
    heads: Sequence[str]
    cells: Sequence[Sequence[str]]


def drawn(rows: Rows) -> Table:
    """Return the table for a terminal."""
    table = Table(title=rows.title, title_justify="left")
    for place, head in enumerate(rows.heads):
        table.add_column(head, justify="left" if place == 0 else "right", overflow="fold")
    for cells in rows.cells:
        table.add_row(*cells)
    return table


def in_markdown(rows: Rows) -> str:
    """Return a heading and the table.

    >>> print(in_markdown(Rows("Towns", ["town", "score"], [["Rome", "1"]])))
    ## Towns
    <BLANKLINE>
    | town | score |
    | --- | ---: |
    | Rome | 1 |
    """
    lines = [rows.heads, ["---"] + ["---:"] * (len(rows.heads) - 1), *rows.cells]
    return "\n".join([f"## {rows.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])
