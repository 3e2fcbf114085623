"""Markdown -> the files, commands and examples that stand in its fences."""

import re
import shlex
from dataclasses import dataclass
from itertools import takewhile

from treegrpo_cli import estimators
from treegrpo_cli._core import describe_selection_rules
from treegrpo_cli.config import Config
from treegrpo_cli.config.foreign_names import own_keys

OPTIONS = {
    "advantage": {option for known in estimators().values() for option in known["options"]},
    "selection": {option for known in describe_selection_rules() for option in known["options"]},
}
SECTIONS = {
    name: section.keys() | OPTIONS.get(name, set())
    for name, section in Config().model_dump().items()
    if isinstance(section, dict)
}
"""Section of the settings -> its keys, with the options that estimators and rules add."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `file` is the name that a comment above it gives it."""

    language: str
    text: str
    file: str = ""


def blocks_of(markdown: str) -> list[Block]:
    """Return the fenced blocks of a page, in their order.

    >>> blocks_of("<!-- file: a.json -->\\n```json\\n{}\\n```\\n")
    [Block(language='json', text='{}\\n', file='a.json')]
    """
    found = re.findall(r"(?:<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)
    return [Block(language, text, file) for file, language, text in found]


def commands_of(markdown: str) -> list[list[str]]:
    """Return the commands of a page's `sh` blocks as lists of words, without comments, pipes and redirections.

    >>> commands_of("```sh\\nmake demo   # four minutes\\ntreegrpo \\\\\\n  doctor\\n```\\n")
    [['make', 'demo'], ['treegrpo', 'doctor']]
    """
    lines = [
        line
        for block in blocks_of(markdown)
        if block.language == "sh"
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [list(takewhile(lambda word: word not in (">", "|"), words)) for words in commands if words]


def named_settings(text: str) -> list[tuple[str, str]]:
    """Return what stands in code as a setting: section and key."""
    return re.findall(rf"`({'|'.join(SECTIONS)})\.(\w+)", text)


def unknown_settings(named: list[tuple[str, str]]) -> list[str]:
    """Return those of them that do not exist."""
    unknown = [f"{section}.{key}" for section, key in named if key not in SECTIONS[section]]
    return [key for key in unknown if not own_keys(key)]  # verl's names have sections that are called as ours
