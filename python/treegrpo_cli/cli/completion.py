"""What was typed of a setting -> the keys that it may become, for the shells' completion."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from treegrpo_cli.config import Config


def complete_setting(incomplete: str) -> list[str]:
    """Return the keys that begin so, each with its `=`; none for nothing, so that the shell offers files.

    >>> complete_setting("rollout.num_r")
    ['rollout.num_rounds=']
    """
    return [f"{key}=" for key in _keys(Config) if incomplete and key.startswith(incomplete)]


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def complete_name(incomplete: str) -> list[str]:
    """Return the sections and keys that begin so; the keys of a section behind its dot.

    >>> complete_name("rollout.num_r"), complete_name("se")
    (['rollout.num_rounds'], ['selection', 'seed'])
    """
    keys = list(_keys(Config))
    sections = dict.fromkeys(key.partition(".")[0] for key in keys if "." in key)
    names = keys if "." in incomplete else [*sections, *(key for key in keys if "." not in key)]
    return [name for name in names if name.startswith(incomplete)]
