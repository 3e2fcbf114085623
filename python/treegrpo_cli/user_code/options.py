"""A user's function + settings beside its name -> its keyword arguments: its options are what it takes, by defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from treegrpo_cli.errors import UserError, nearest

KINDS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def keyword_options(
    function: Callable[..., Any], given: Mapping[str, Any], key: str, *, num_arguments: int
) -> dict[str, Any]:
    """Return the options of a function that takes `num_arguments` of ours in front of them, `given` over its defaults.

    A value has its default's type; an integer is a number too, and text that reads as one or the other is that.

    >>> def score(columns, *, alpha=0.1): ...
    >>> keyword_options(score, {"alpha": 2}, "selection.rule", num_arguments=1)
    {'alpha': 2.0}

    Raises:
        UserError: names `key`, where the function does not take what we give it, has no such option, or needs one.
    """
    options, takes_all = _options(function, key, num_arguments)
    if not takes_all:
        for name in given.keys() - options.keys():
            raise UserError(f"{key}: {_name(function)} has no option {name!r}; {_what_there_is(name, options)}")
    resolved = {name: _typed(value, options.get(name), f"{key}: option {name!r}") for name, value in given.items()}
    for name, parameter in options.items():
        if name not in resolved and parameter.default is parameter.empty:
            raise UserError(f"{key}: {_name(function)} needs the option {name!r}; give it beside the name")
    defaults = {name: p.default for name, p in options.items() if p.default is not p.empty}
    return {**defaults, **resolved}


def _options(function: Callable[..., Any], key: str, num_arguments: int) -> tuple[dict[str, inspect.Parameter], bool]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UserError(f"{key}: the arguments of {_name(function)} cannot be read") from None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < num_arguments or any(p.kind is p.POSITIONAL_ONLY for p in positional[num_arguments:]):
        shown = ", ".join(map(str, parameters))
        wanted = "1 argument" if num_arguments == 1 else f"{num_arguments} arguments"
        raise UserError(f"{key}: {_name(function)} must take {wanted} and then options, got ({shown})")
    ours = {p.name for p in positional[:num_arguments]}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return {p.name: p for p in named if p.name not in ours}, takes_all


def _typed(value: Any, parameter: inspect.Parameter | None, what: str) -> Any:
    kind = str if parameter is None or parameter.default is parameter.empty else type(parameter.default)
    if parameter is None or parameter.default is parameter.empty or kind not in KINDS or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str) and (read := _read(value, kind)) is not None:
        return read
    raise UserError(f"{what} is {KINDS[kind]}, got {value!r:.60}")


def _read(text: str, kind: type) -> bool | float | None:
    """What a command line's text says, of this kind; None where it says nothing of it."""
    if kind is bool:
        return {"true": True, "false": False}.get(text)
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return None


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", "it"))


def _what_there_is(name: str, options: Mapping[str, Any]) -> str:
    return nearest(name, options) if options else "it has none"
