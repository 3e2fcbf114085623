"""`treegrpo plot`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from treegrpo_cli.cli.commands.arguments import Quiet


class Axis(StrEnum):
    """What runs are drawn against."""

    STEP = "step"
    TOKENS = "tokens"
    SECONDS = "seconds"
    TOOL_CALLS = "tool-calls"


def plot(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run's directory, or NAME=RUN to name its line. NAME=RUN,RUN draws one line with its interval over "
            "these runs; the directory of a comparison draws a line for each arm.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE",
            help="Write to this directory, or a file that ends in .png or .svg.  [default: plots; with --show, none]",
            show_default=False,
        ),
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="Draw in the terminal.")] = False,
    x: Annotated[
        Axis, typer.Option("--x", help="The horizontal axis: steps, or what was spent until then.")
    ] = Axis.STEP,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Draw this metric of metrics.jsonl; may be repeated.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PANEL",
            help="Draw this panel: score, reward, entropy, signal, tokens, seconds, sharing, cost, calls, per-token; "
            "may be repeated.  [default: all]",
            show_default=False,
        ),
    ] = None,
    smooth: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="N",
            help="Draw the mean of the last N steps at each step; evaluations are not smoothed.",
        ),
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Draw runs: score, reward, entropy, signal by depth, tokens, seconds, sharing, and trees against chains."""
    from treegrpo_cli.cli.plot import Asked, run_plot

    run_plot(Asked(runs, output, x.value, metric or [], only or [], smooth, show), quiet=quiet)
