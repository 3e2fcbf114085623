"""`treegrpo config`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from treegrpo_cli.errors import UserError


class Format(StrEnum):
    """How settings are printed."""

    text = "text"
    json = "json"


def _complete(incomplete: str) -> list[str]:
    from treegrpo_cli.cli.completion import complete_name

    return complete_name(incomplete)


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION|KEY",
            help="List only this section, such as rollout, or explain this key, such as rollout.num_trees.",
            show_default=False,
            autocompletion=_complete,
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Explain one key in full; names of TRL and verl are understood.",
            show_default=False,
            autocompletion=_complete,
        ),
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="For a person, or for tools.")] = Format.text,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of settings files, for editors, and exit.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference page of settings, and exit.")
    ] = False,
) -> None:
    """List every setting with its type, default and meaning, or explain one.

    In a pipe each key has one line, and all lines are a valid settings file: treegrpo config | grep tokens
    """
    chosen = [name] if name else []
    chosen += [f"--explain {explain}"] if explain else []
    chosen += ["--schema"] * schema + ["--markdown"] * markdown + ["--format json"] * (output_format is Format.json)
    if (schema or markdown) and len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} cannot be combined: --schema and --markdown print all settings")
    if schema:
        import json

        from treegrpo_cli.config.schema import json_schema

        print(json.dumps(json_schema(), indent=2))
    elif markdown:
        from treegrpo_cli.config.reference import markdown as page

        print(page(), end="")
    else:
        from treegrpo_cli.cli.config import show_settings

        show_settings(name, explain, output_format)
