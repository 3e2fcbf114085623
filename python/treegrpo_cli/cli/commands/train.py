"""`treegrpo train`."""

from __future__ import annotations

from typing import Annotated

import typer

from treegrpo_cli.cli.commands.arguments import Data, Model, Quiet, Reward, Settings, print_settings


def train(
    settings: Settings = None,
    output_dir: Annotated[str | None, typer.Option(help="The same as output_dir=...", show_default=False)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in output_dir, or in a folder given in place of CONFIG.")
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="Where else metrics go: tensorboard, wandb, trackio or none; may be repeated."),
    ] = None,
    log_completions: Annotated[
        bool,
        typer.Option(
            "--log-completions", help="Print a few completions of each step; train.log_completions sets how many."
        ),
    ] = False,
    model: Model = None,
    data: Data = None,
    reward: Reward = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check all that can be checked without an engine, print the resolved settings and the memory that the "
            "run needs, and stop.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a policy: grow trees, score them, update the weights, send them to the engine; repeat."""
    from treegrpo_cli.cli.settings import Flags, read_resumed_settings, read_settings
    from treegrpo_cli.cli.train import check_train, run_train

    flags = Flags(
        model=model,
        data=data,
        reward=reward,
        output_dir=output_dir,
        report_to=report_to,
        log_completions=log_completions,
    )
    config, named = (
        read_resumed_settings(settings or [], **flags) if resume else (read_settings(settings or [], **flags), set())
    )
    if dry_run:
        needs = check_train(config, resume=resume)
        print_settings(config)
        print("", *(f"# {line}" for line in needs), sep="\n")
    else:
        run_train(config, resume=resume, named=named, quiet=quiet)
