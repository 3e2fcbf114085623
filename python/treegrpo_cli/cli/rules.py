"""The core's selection rules -> lines for a terminal: what `treegrpo rules` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from treegrpo_cli._core import describe_selection_rules
from treegrpo_cli.errors import UserError, nearest

if TYPE_CHECKING:
    from treegrpo_cli._core import SelectionRule

LETTERS = "n a turn that may be continued, V a value, H entropy, S -log-probability, k scored leaves below"


def lines_of_rules(name: str | None = None) -> Iterator[str]:
    """All rules in short, or one with its options. Raises UserError for a name that is none."""
    known = {rule["name"]: rule for rule in describe_selection_rules()}
    if name is None:
        width = max(map(len, known))
        for rule in known.values():
            yield f"{rule['name']:<{width}}  {rule['summary']}"
            yield f"{'':<{width}}  {rule['formula']}"
        yield ""
        yield LETTERS
        yield "treegrpo rules NAME lists the options of one"
    elif name in known:
        yield from _whole(known[name])
    else:
        raise UserError(f"unknown selection rule {name!r}; {nearest(name, known)}")


def _whole(rule: SelectionRule) -> Iterator[str]:
    yield f"{rule['name']}: {rule['summary']}"
    yield rule["formula"]
    yield LETTERS
    yield f"reads {', '.join(rule['needs']) or 'the shape of trees alone'}"
    yield ""
    options = {f"{name}={_shown(option['default'])}": option["legal"] for name, option in rule["options"].items()}
    width = max(map(len, options))
    yield from (f"  {default:<{width}}  {legal}" for default, legal in options.items())


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
