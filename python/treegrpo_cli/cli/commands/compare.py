"""`treegrpo compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from treegrpo_cli.cli.commands.arguments import Quiet


def compare(
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARM KEY=VALUE",
            help="Files of settings, each an arm, the first one what the others are compared with; then single "
            "settings for all of them.",
            show_default=False,
        ),
    ] = None,
    common: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Settings of all arms, under their own files.", show_default=False),
    ] = None,
    output: Annotated[str, typer.Option(metavar="DIR", help="Where runs and report go.")] = "runs/compare",
    seeds: Annotated[str, typer.Option(help="How many, as 5, or which, as 3,7,11.")] = "5",
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Generated tokens of each run.", show_default=False)
    ] = None,
    budget_tool_calls: Annotated[
        int | None, typer.Option(min=1, help="Tool calls of each run.", show_default=False)
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds of each run's steps; runs then go one by one.", show_default=False),
    ] = None,
    score: Annotated[
        str, typer.Option(help="Which of the evaluations' scores.  [default: reward, else the only one]")
    ] = "",
    targets: Annotated[
        str,
        typer.Option(
            help="Scores to wait for, as 0.5,0.7.  [default: a half, three quarters and 0.9 of the best arm's gain, "
            "and the first arm's last score]"
        ),
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at once.  [default: as cores and memory allow; one on a GPU]", show_default=False
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make the report again from the runs in --output.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train arms on several seeds at equal budgets, and compare their learning curves."""
    from treegrpo_cli.cli.compare import Asked, run_compare

    budgets = {"tokens": budget_tokens, "tool_calls": budget_tool_calls, "seconds": budget_seconds}
    asked = Asked(
        arms=arms or [],
        common=common,
        output=output,
        seeds=seeds,
        budgets={axis: budget for axis, budget in budgets.items() if budget is not None},
        score=score,
        targets=targets,
    )
    run_compare(asked, jobs=jobs, report_only=report_only, quiet=quiet)
