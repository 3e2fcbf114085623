"""What was asked about settings -> all of them, a section's, or one in full, for a person or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any

from rich.text import Text

from treegrpo_cli.cli.config_lines import explain_option, explain_setting, plain, sections
from treegrpo_cli.cli.show.terminal import Screen, show
from treegrpo_cli.config.catalogue import Setting, related, settings, tables
from treegrpo_cli.config.foreign_names import own_keys
from treegrpo_cli.config.options import Option, options_by_key
from treegrpo_cli.config.spellings import answer_to
from treegrpo_cli.errors import CLOSE, UserError


def show_settings(name: str | None, explained: str | None, output_format: str) -> None:
    """Print all settings, those of a section, or one in full. Raises UserError for a name that is none."""
    if name and explained:
        raise UserError(f"--explain {explained} cannot be combined with {name}; ask for one of them")
    if explained in tables():
        raise UserError(f"--explain {explained}: is a section; `treegrpo config {explained}` lists its keys")
    asked = explained or name or ""
    lists = not explained and asked in tables()
    keys = [key for key in [*settings(), *options_by_key()] if not asked or key.startswith(f"{asked}.")]
    found = keys if lists else named(asked)
    if output_format == "json":
        print(json.dumps(_as_json(found), indent=2))
    elif lists:
        _list(found)
    else:
        _explain(asked, found)


def named(asked: str) -> tuple[str, ...]:
    """The keys that a name stands for: itself, or those of somebody else's name. Raises UserError for none."""
    if asked in settings() or asked in options_by_key():
        return (asked,)
    if keys := own_keys(asked):
        return keys
    if answer := answer_to(asked):
        raise UserError(f"{asked}: {answer}")
    known = [key for key in [*settings(), *options_by_key(), *tables()] if key]
    homes = [key for key in known if key.endswith(f".{asked}")]
    by_name = {key.partition(".")[2] or key: key for key in reversed(known)} | {key: key for key in known}
    close = homes or [by_name[name] for name in get_close_matches(asked, by_name, n=1, cutoff=CLOSE)]
    hint = f"did you mean {close[0]!r}?" if close else "`treegrpo config` lists all"
    raise UserError(f"no setting is called {asked!r:.60}; {hint}")


def _list(keys: Sequence[str]) -> None:
    screen = Screen()
    if sys.stdout.isatty() or screen.has_colors():
        show(lambda width: sections(keys, width), screen)
    else:
        print("\n".join(map(plain, keys)))


def _explain(asked: str, keys: Sequence[str]) -> None:
    show(lambda width: chain.from_iterable(_explained(key, asked, width) for key in keys), Screen())


def _explained(key: str, asked: str, width: int) -> Iterator[Text]:
    known = settings().get(key)
    return explain_setting(known, asked, width) if known else explain_option(options_by_key()[key], width)


def _as_json(keys: Sequence[str]) -> dict[str, Any]:
    """All that is known of some keys, for tools."""
    asked = [settings()[key] for key in keys if key in settings()]
    options = [option for key in keys for option in options_by_key().get(key, ())]
    return {"settings": list(map(_setting, asked)), "options": list(map(_option, options))}


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "key": setting.key,
        "section": setting.section,
        "type": setting.kind,
        "default": setting.default,
        "meaning": setting.meaning,
        "paper": setting.paper or None,
        "other_names": list(setting.foreign_names),
        "related": related(setting),
    }


def _option(option: Option) -> dict[str, Any]:
    return {
        "key": option.key,
        "of": option.owner,
        "default": option.default,
        "legal": option.legal,
        "beside": option.beside,
    }
