"""`treegrpo watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory; it need not exist yet.")],
    once: Annotated[
        bool, typer.Option("--once", help="Print a summary and exit; without a terminal this is always done.")
    ] = False,
) -> None:
    """Follow a run in the terminal until it ends; q leaves, and the run goes on."""
    from treegrpo_cli.cli.watch import run_watch

    run_watch(run, once=once)
