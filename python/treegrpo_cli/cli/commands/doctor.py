"""`treegrpo doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treegrpo_cli.cli.commands.arguments import Data, Model, Quiet, Settings


def doctor(
    settings: Settings = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write all that was found to this file, as JSON without passwords.", show_default=False),
    ] = None,
    model: Model = None,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Look whether this machine, and a run's settings where they are given, are as they should be.

    Run it first. It prints versions, driver and devices; tries each engine and each attention path on a tiny random
    model, against the plain way to compute the same; and, where settings are given, reads data, model files, tools and
    rewards, and counts the memory that the run needs. Each line is right, wrong, or cannot be tried here; the exit code
    is 1 where something is wrong.
    """
    from treegrpo_cli.cli.doctor import run_doctor
    from treegrpo_cli.cli.settings import Flags

    if run_doctor(settings or [], Flags(model=model, data=data), report, quiet=quiet):
        raise typer.Exit(1)
