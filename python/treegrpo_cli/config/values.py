"""Tree of settings as it was read -> one line where it holds what TOML could not write and read back the same."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from treegrpo_cli.errors import UserError

MAX_DEPTH, MAX_VALUES = 32, 100_000
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables in tables -> one table of dotted keys.

    >>> flat({"seed": 1, "rollout": {"num_trees": 2}})
    {'seed': 1, 'rollout.num_trees': 2}
    """
    keys: dict[str, Any] = {}
    for key, value in table.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return keys


def check_values(tree: dict[Any, Any]) -> None:
    """Raise UserError, naming the dotted key, for a value that no file of settings can hold."""
    for number, (key, value) in enumerate(_walk(tree)):
        if number >= MAX_VALUES:
            raise UserError(f"more than {MAX_VALUES} settings")
        if problem := _problem(key, value):
            raise UserError(f"{'.'.join(key)[:200]}: {problem}")


def _walk(tree: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while waiting:
        place, value = waiting.pop()
        if place:
            yield place, value
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    raise UserError(f"{'.'.join(place) or 'settings'}: a key must be text, got {name!r:.40}")
                if not _is_utf8(name):
                    raise UserError(f"{'.'.join(place) or 'settings'}: the key {name!r:.40} is not UTF-8")
            waiting += [((*place, name), inside) for name, inside in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*place, str(number)), inside) for number, inside in reversed(list(enumerate(value)))]


def _problem(key: tuple[str, ...], value: Any) -> str:
    match value:
        case dict() | list():
            return f"nested deeper than {MAX_DEPTH}" if len(key) >= MAX_DEPTH else ""
        case str():
            return "" if _is_utf8(value) else "not UTF-8"
        case bool():
            return ""
        case int():
            return "" if MIN_INTEGER <= value <= MAX_INTEGER else "an integer beyond 64 bits"
        case float():
            return "" if isfinite(value) else f"must be a finite number, got {value}"
        case None:
            is_a_setting = len(key) <= 2 and key[0] not in ("advantage", "environment", "selection")
            return "" if is_a_setting else "null; leave it out instead"
        case _:
            return f"a {type(value).__name__}; write it as text, in quotes"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
