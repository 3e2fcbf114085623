"""`treegrpo init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _complete_task(incomplete: str) -> list[str]:
    from treegrpo_cli.starters import STARTERS

    return [name for name in STARTERS if name.startswith(incomplete)]


def init(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="The task to start from; without one, all tasks are listed.",
            show_default=False,
            autocompletion=_complete_task,
        ),
    ] = None,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Where to write it; made if needed.  [default: here]", show_default=False
        ),
    ] = Path(),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The model to train, a folder or a name on the Hub, written as model.path.  [default: a small one]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented settings file for a task, with the questions and code that it needs to run at once.

    No file is overwritten.
    """
    from treegrpo_cli.cli.init import list_tasks, start

    if task is None:
        list_tasks()
    else:
        start(task, folder, model)
