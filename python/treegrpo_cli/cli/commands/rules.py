"""`treegrpo rules`."""

from __future__ import annotations

from typing import Annotated

import typer


def list_rules(
    name: Annotated[
        str | None, typer.Argument(help="Show only this rule, with its options.", show_default=False)
    ] = None,
) -> None:
    """List the selection rules, their formulas and options: which turns a round expands."""
    from treegrpo_cli.cli.rules import lines_of_rules

    for line in lines_of_rules(name):
        print(line)
