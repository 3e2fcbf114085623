"""`treegrpo eval`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from treegrpo_cli.cli.commands.arguments import DryRun, Quiet, Reward, Settings, print_settings
from treegrpo_cli.errors import UserError


class Report(StrEnum):
    """How `eval` says what it measured."""

    TEXT = "text"
    JSON = "json"


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help="A model, or the folder of a run: its settings and newest checkpoint.",
            show_default=False,
        ),
    ],
    settings: Settings = None,
    data: Annotated[str | None, typer.Option(help="The same as data.eval=...", show_default=False)] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples per question.")] = 1,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always take the likeliest token.  [default where --n is 1]")
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample at this temperature; the same as rollout.temperature=...", show_default=False),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Take the checkpoint of this step of a RUN; 0 is the model before training."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="The reward that a sample must reach to pass, for pass@k.")] = 1.0,
    output: Annotated[
        Path | None, typer.Option(help="Write the rollouts to this tree file.", show_default=False)
    ] = None,
    output_format: Annotated[Report, typer.Option("--format", help="Lines, or one JSON object.")] = Report.TEXT,
    reward: Reward = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Ask each question once, greedily, or --n times.

    Prints mean rewards with intervals, pass@k, and the reward of the majority's answer.
    """
    from treegrpo_cli.cli.evaluate import Sampling, check_evaluation, read_target, run_evaluation

    config = read_target(target, settings or [], step=step, data=data, reward=reward, temperature=temperature)
    if greedy and (n > 1 or temperature is not None):
        raise UserError("--greedy cannot be combined with --temperature or more than one sample (--n)")
    if dry_run:
        check_evaluation(config, output)
        print_settings(config)
    else:
        sampling = Sampling(n, greedy=n == 1 and temperature is None)
        run_evaluation(config, sampling, threshold, output, as_json=output_format is Report.JSON, quiet=quiet)
