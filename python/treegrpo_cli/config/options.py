"""The core's estimators and selection rules -> the options that stand beside their names in a settings file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby

from treegrpo_cli._core import describe_estimators, describe_selection_rules

NAMING = {"advantage": "estimator", "selection": "rule"}
"""Section -> the key that names whose options stand beside it."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one estimator or rule."""

    section: str
    owner: str
    """The estimator or rule that has it."""
    name: str
    default: str | float | int | bool
    legal: str
    """What it may be, in words."""
    beside: str | None
    """`option=value` beside which alone it counts."""

    @property
    def key(self) -> str:
        """As the command line has it."""
        return f"{self.section}.{self.name}"


@cache
def options() -> tuple[Option, ...]:
    """Return the options of all, owner by owner."""
    owners = [("advantage", known) for known in describe_estimators()]
    rules = [("selection", known) for known in describe_selection_rules()]
    return tuple(
        Option(section, known["name"], name, option["default"], option["legal"], option["beside"])
        for section, known in [*owners, *rules]
        for name, option in known["options"].items()
    )


def options_by_key() -> dict[str, list[Option]]:
    """Key -> the options that are called so, one an owner.

    >>> [(option.owner, option.default) for option in options_by_key()["selection.kappa"]]
    [('contrast', 1.0)]
    """
    by_key: dict[str, list[Option]] = {}
    for option in options():
        by_key.setdefault(option.key, []).append(option)
    return by_key


def alike(same_key: list[Option]) -> list[tuple[Option, list[str]]]:
    """Those that are the same option of several owners together: one of them, and all their owners."""

    def what(option: Option) -> tuple[str, str, str]:
        return repr(option.default), option.legal, option.beside or ""

    groups = groupby(sorted(same_key, key=what), key=what)
    found = [(together[0], [option.owner for option in together]) for _, group in groups if (together := list(group))]
    return sorted(found, key=lambda each: same_key.index(each[0]))
