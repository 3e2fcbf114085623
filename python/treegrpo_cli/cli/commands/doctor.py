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
        typer.Option(help="Also write all of it to this file, as JSON without passwords.", show_default=False),
    ] = None,
    model: Model = None,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Check this machine and, if you give them, the settings or the folder of a run.

    Run this first. It prints versions, driver and devices, and compares each engine and each attention path with a
    plain computation on a tiny random model. With settings, it also checks data, model files, tools and rewards, and
    counts the memory that the run needs. Each line says right, wrong, or "not here" for what cannot be tried on this
    machine. The exit code is 1 if anything is wrong.
    """
    from treegrpo_cli.cli.doctor import run_doctor
    from treegrpo_cli.cli.settings import Flags

    if run_doctor(settings or [], Flags(model=model, data=data), report, quiet=quiet):
        raise typer.Exit(1)
