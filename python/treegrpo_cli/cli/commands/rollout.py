"""`treegrpo rollout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treegrpo_cli.cli.commands.arguments import Data, DryRun, Model, Quiet, Reward, Settings, print_settings
from treegrpo_cli.errors import UserError


def rollout(
    settings: Settings = None,
    output: Annotated[Path, typer.Option(help="Tree file to write, .jsonl or .jsonl.zst.")] = Path("trees.jsonl"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished output file.")] = False,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Grow no trees; answer each question of --data, or else of data.eval, once and greedily.",
        ),
    ] = False,
    model: Model = None,
    data: Data = None,
    reward: Reward = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Grow trees for every question of a data set, score them, and write them."""
    from treegrpo_cli.cli.rollout import check_rollout, run_greedy, run_rollout
    from treegrpo_cli.cli.settings import names_train_data, read_settings

    if greedy and resume:
        raise UserError("--greedy writes no trees, so there is nothing to --resume")
    config = read_settings(settings or [], model=model, data=data, reward=reward)
    asks_train_data = data is not None or names_train_data(settings or [])
    if dry_run:
        check_rollout(config, None if greedy else output, resume=resume, asks_train_data=asks_train_data)
        print_settings(config)
    elif greedy:
        run_greedy(config, asks_train_data=asks_train_data, quiet=quiet)
    else:
        run_rollout(config, output, resume=resume, quiet=quiet)
