"""Arguments that several commands take, and how `--dry-run` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from treegrpo_cli.config import Config


def _complete_setting(incomplete: str) -> list[str]:
    from treegrpo_cli.cli.completion import complete_setting

    return complete_setting(incomplete)


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG KEY=VALUE",
        help="A TOML or YAML file of settings, then single settings that override it.",
        show_default=False,
        autocompletion=_complete_setting,
    ),
]
Model = Annotated[str | None, typer.Option(help="The same as model.path=...", show_default=False)]
Data = Annotated[str | None, typer.Option(help="The same as data.train=...", show_default=False)]
Reward = Annotated[
    list[str] | None,
    typer.Option(
        help="A reward function: exact_match, f1, format, environment, or your own file.py:function; may be repeated."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check all that can be checked without an engine, print the resolved settings, and stop."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results only.")]


def print_settings(config: Config) -> None:
    """Print the resolved settings, without passwords."""
    from treegrpo_cli.config.files import dump_config
    from treegrpo_cli.config.secrets import without_passwords

    print(without_passwords(dump_config(config)), end="")
