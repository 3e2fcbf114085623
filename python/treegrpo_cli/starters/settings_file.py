"""A task -> the text of its settings file, each key below what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from treegrpo_cli.config.catalogue import about, as_toml, settings, tables
from treegrpo_cli.starters.tasks import OFTEN_TUNED, REMARKS, Starter

WIDTH = 110
INTRODUCTION = """\
{summary}

    treegrpo doctor settings.toml             check this machine, these settings and the data
    treegrpo train settings.toml --dry-run    check the settings and count the memory, without an engine
    treegrpo train settings.toml              train; the run is in {output_dir}

A line such as `# seed = 0` shows a default: take the `#` away to change it. `treegrpo config` lists all
other keys, and `treegrpo config rollout.num_trees` explains one. For completion in an editor, run
`treegrpo config --schema > settings.schema.json` and make `#:schema ./settings.schema.json` the first line."""


def settings_text(starter: Starter) -> str:
    """Return the file as TOML with comments, which are the settings' own meanings."""
    given = starter.all_settings
    summary = f"{starter.summary[0].upper()}{starter.summary[1:]}."
    head = INTRODUCTION.format(summary=summary, output_dir=given["output_dir"])
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for section in tables():
        keys = [
            key for key in settings() if settings()[key].section == section and (key in given or key in OFTEN_TUNED)
        ]
        if keys:
            lines += ["", f"[{section}]  # {about(section)}"] if section else []
            lines += [line for key in keys for line in _entry(key, starter)]
    return "\n".join(lines) + "\n"


def _entry(key: str, starter: Starter) -> Iterator[str]:
    setting, given = settings()[key], starter.all_settings
    yield ""
    yield from textwrap.wrap(
        setting.summary, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    if key in given:
        remark = f"  # {REMARKS[key]}" if key in REMARKS and key not in starter.chosen else ""
        yield f"{setting.name} = {as_toml(given[key])}{remark}"
    else:
        yield f"# {setting.name} = {as_toml(setting.default)}"
