"""Settings -> lines: one a key for a pipe, wrapped and coloured for a terminal, or all that there is to say of one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from treegrpo_cli.config.catalogue import Setting, about, as_toml, related, settings
from treegrpo_cli.config.options import NAMING, Option, alike, options_by_key

KEY, KIND, TITLE = "bold", "dim", "bold cyan"
INDENT = "    "


def plain(key: str) -> str:
    """One line of a key: valid TOML with its default, then its type and what it is."""
    if key in settings():
        setting = settings()[key]
        return f"{key} = {as_toml(setting.default)}  # {setting.kind}. {setting.summary}"
    return f"# {key}: {'; '.join(_forms(key))}"


def sections(keys: Sequence[str], width: int) -> Iterator[Text]:
    """All keys under the names of their sections, wrapped."""
    for section, group in groupby(sorted(keys, key=_place), key=_section):
        yield Text(f"[{section}]" if section else "at the top of the file", TITLE)
        yield from _wrapped(about(section), width, "")
        for key in group:
            yield from _entry(key, width)
        yield Text("")


def explain_setting(setting: Setting, asked: str, width: int) -> Iterator[Text]:
    """All that there is to say of one setting; `asked` is the name by which it was asked for."""
    if asked != setting.key:
        yield from _wrapped(f"{asked} is here {setting.key}:", width, "")
        yield Text("")
    yield Text.assemble((setting.key, KEY), f" = {as_toml(setting.default)}")
    yield from _wrapped(setting.kind, width, "", KIND)
    for paragraph in setting.meaning.split("\n\n"):
        yield Text("")
        yield from _wrapped(paragraph, width, "")
    yield from _besides(setting, width)
    if NAMING.get(setting.section) == setting.name:
        yield Text("")
        beside = [key for key in options_by_key() if key.startswith(f"{setting.section}.")]
        yield from _labelled("options", ", ".join(beside), width)
    yield Text("")


def explain_option(same_key: Sequence[Option], width: int) -> Iterator[Text]:
    """All that there is to say of the options of one name."""
    section = same_key[0].section
    yield Text(same_key[0].key, KEY)
    yield from _wrapped(f"An option beside {section}.{NAMING[section]}, where that names one of these:", width, "")
    for option, owners in alike(list(same_key)):
        beside = f", beside {option.beside} alone" if option.beside else ""
        yield Text("")
        yield from _labelled("of", ", ".join(owners), width)
        yield from _labelled("default", as_toml(option.default), width)
        yield from _labelled("legal", f"{option.legal}{beside}", width)
    yield Text("")


def _besides(setting: Setting, width: int) -> Iterator[Text]:
    notes = {
        "paper": setting.paper,
        "TRL, verl": ", ".join(setting.foreign_names),
        "see also": ", ".join(related(setting)),
    }
    if any(notes.values()):
        yield Text("")
    for label, text in notes.items():
        if text:
            yield from _labelled(label, text, width)


def _entry(key: str, width: int) -> Iterator[Text]:
    if key in settings():
        setting = settings()[key]
        yield from _wrapped(f"{setting.name} = {as_toml(setting.default)}", width, "  ", KEY)
        yield from _wrapped(setting.kind, width, INDENT, KIND)
        yield from _wrapped(setting.summary, width, INDENT)
    else:
        yield from _wrapped(f"{key.partition('.')[2]}, an option", width, "  ", KEY)
        for form in _forms(key):
            yield from _wrapped(form, width, INDENT, KIND)


def _forms(key: str) -> Iterator[str]:
    for option, owners in alike(options_by_key()[key]):
        yield f"{option.legal}; {as_toml(option.default)} for {', '.join(owners)}"


def _wrapped(text: str, width: int, indent: str, style: str = "") -> Iterator[Text]:
    for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False):
        yield Text(line, style)


def _labelled(label: str, text: str, width: int) -> Iterator[Text]:
    lines = textwrap.wrap(text, width - 11, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        yield Text.assemble((f"{'' if number else label:<11}", KIND), line)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _place(key: str) -> int:
    order = list(dict.fromkeys(map(_section, settings())))
    return order.index(_section(key))
