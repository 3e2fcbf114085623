"""Config -> the reference page of settings, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from treegrpo_cli.config.catalogue import Setting, about, as_toml, settings, tables
from treegrpo_cli.config.options import NAMING, Option, options

INTRODUCTION = """\
# Settings

Every key of a settings file, by section, as `treegrpo config --markdown` prints it. In a terminal, `treegrpo config`
lists the same, `treegrpo config rollout` one section, and `treegrpo config rollout.num_trees` explains one key.

A settings file is TOML or YAML; `section.key=value` on the command line wins over it. Lengths are in tokens and times
in seconds unless a key says otherwise. The names after *TRL, verl* are accepted in place of the key.

## In an editor

`treegrpo config --schema > settings.schema.json` writes a JSON schema ([this one](settings.schema.json)), from which
editors complete keys, show their meaning and mark mistakes. Name it on the first line of a settings file:

```toml
#:schema ./settings.schema.json
```

```yaml
# yaml-language-server: $schema=./settings.schema.json
```

Even Better TOML and taplo read the first, the YAML extension of Red Hat the second. The schema knows our own names
alone, so it marks those of TRL and verl, which a run accepts.
"""


def markdown() -> str:
    """Return the whole page."""
    return "\n".join(line for section in tables() for line in _section(section)).join((f"{INTRODUCTION}\n", "\n"))


def _section(section: str) -> Iterator[str]:
    yield f"## {f'[{section}]' if section else 'At the top of the file'}"
    yield ""
    yield about(section)
    yield ""
    yield "| key | default | type | meaning |"
    yield "|---|---|---|---|"
    yield from (_row(setting) for setting in settings().values() if setting.section == section)
    yield ""
    if section in NAMING:
        yield from _options(section)


def _row(setting: Setting) -> str:
    names = ", ".join(f"`{name}`" for name in setting.foreign_names)
    letter = f" Paper: {setting.paper}." if setting.paper else ""
    also = f" *TRL, verl:* {names}." if names else ""
    cells = [f"`{setting.name}`", f"`{as_toml(setting.default)}`", setting.kind, f"{setting.meaning}{letter}{also}"]
    return _table_row(cells)


def _options(section: str) -> Iterator[str]:
    naming = NAMING[section]
    yield f"Options stand beside `{naming}`, in the same table. Each {naming} has its own:"
    yield ""
    yield f"| {naming} | option | default | legal values |"
    yield "|---|---|---|---|"
    yield from (_option_row(option) for option in options() if option.section == section)
    yield ""


def _option_row(option: Option) -> str:
    beside = f"; beside `{option.beside}` alone" if option.beside else ""
    return _table_row(
        [f"`{option.owner}`", f"`{option.name}`", f"`{as_toml(option.default)}`", f"{option.legal}{beside}"]
    )


def _table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10) * 2, ' ') for cell in cells)} |"
