"""`treegrpo estimators`."""

from __future__ import annotations

from typing import Annotated

import typer


def list_estimators(
    name: Annotated[
        str | None, typer.Argument(help="Show only this one, with its options.", show_default=False)
    ] = None,
) -> None:
    """List the estimators, their formulas and options: what --estimator and [advantage] take."""
    from treegrpo_cli.trees.estimators import lines_of

    for line in lines_of(name):
        print(line)
