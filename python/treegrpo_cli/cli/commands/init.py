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
            help="What to start from; without it, the tasks are listed.",
            show_default=False,
            autocompletion=_complete_task,
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Argument(help="Where to write it; made if it is not there.", show_default=False)
    ] = Path(),
    model: Annotated[
        str | None, typer.Option(help="Write this as model.path, in place of a small one.", show_default=False)
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
