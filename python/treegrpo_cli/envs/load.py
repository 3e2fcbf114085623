"""EnvironmentConfig -> Environment: built-in name, dotted path to a class, or functions offered as tools."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs.answers import checked_tools
from treegrpo_cli.envs.base import Environment
from treegrpo_cli.envs.gymnasium_world import GymnasiumWorld, constructor_of
from treegrpo_cli.envs.stateful import StatefulEnvironment
from treegrpo_cli.envs.tool_schema import ArgumentError, check_arguments, parameters_of
from treegrpo_cli.envs.tools import ToolEnvironment
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.types import Limits
from treegrpo_cli.user_code import load_dotted, user_code_error

GYM_PREFIX = "gym:"
BUILTIN = {
    "single-turn": "treegrpo_cli.envs.single_turn:SingleTurnEnvironment",
    "search": "treegrpo_cli.envs.search:SearchEnvironment",
    "calculator": "treegrpo_cli.envs.calculator:CalculatorEnvironment",
    "tools": "treegrpo_cli.envs.tools:ToolEnvironment",
}


def load_environment(config: EnvironmentConfig, limits: Limits | None = None) -> Environment[Any]:
    """Return the environment that `config` names, made with its options.

    A class is pure where its `step` takes (state, action), stateful where it takes (action) alone; one of
    gymnasium's, or `gym:ID`, is played by a `GymnasiumWorld`; a function, or a list of them, becomes the tools of
    a `ToolEnvironment`. A constructor that has a parameter `dialect` is given the dialect,
    one that has `file_limits` the `limits` within which it reads files.

    Raises:
        UserError: names the dotted key and, for an option, the nearest valid one.
    """
    if config.name.startswith(GYM_PREFIX):
        constructor = constructor_of(config.name.removeprefix(GYM_PREFIX))
        return _make(GymnasiumWorld, config, constructor=constructor)
    target = load_dotted(_path(config.name), "environment.name")
    if _is_gymnasium(target):
        return _make(GymnasiumWorld, config, constructor=target)
    if inspect.isclass(target):
        return _make(target, config, **({"file_limits": limits} if "file_limits" in parameters_of(target) else {}))
    functions = [target] if callable(target) else target
    if not isinstance(functions, (list, tuple)) or not all(callable(f) and hasattr(f, "__name__") for f in functions):
        raise UserError(f"environment.name: {config.name} is neither a class nor a function (or list of functions)")
    return _make(ToolEnvironment, config, tools=list(functions))


def _is_gymnasium(target: Any) -> bool:
    gymnasium = sys.modules.get("gymnasium")  # who inherits from it has imported it
    return inspect.isclass(target) and gymnasium is not None and issubclass(target, gymnasium.Env)


def _path(name: str) -> str:
    if ":" in name:
        return name
    if name not in BUILTIN:
        hint = f"{nearest(name, BUILTIN)} (your own: package.module:Name; gymnasium's: gym:ID)"
        raise UserError(f"environment.name: unknown environment {name!r}; {hint}")
    return BUILTIN[name]


def _make(cls: type, config: EnvironmentConfig, **given: Any) -> Environment[Any]:
    make = functools.partial(cls, **_checked_options(cls, config, given), **given)
    try:
        environment: Environment[Any] = StatefulEnvironment(make) if _is_stateful(cls, config.name) else make()
        tools = getattr(environment, "tools", None)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the user's constructor raises is the user's to mend
        raised = user_code_error(error)
        raise UserError(f"environment: cannot make {config.name}: {raised.reason}", raised.trace) from error
    checked_tools(tools, config.name)
    if isinstance(environment, ToolEnvironment):
        environment.tool_errors = config.tool_errors
    return environment


def _checked_options(cls: type, config: EnvironmentConfig, given: dict[str, Any]) -> dict[str, Any]:
    parameters = {name: p for name, p in parameters_of(cls).items() if name not in given}
    takes_dialect = parameters.pop("dialect", None) is not None
    if not _takes_any_keyword(cls):
        try:
            options = check_arguments(parameters, config.options)
        except ArgumentError as error:
            raise UserError(f"environment.options.{error.name}: {error}") from error
    else:
        options = dict(config.options)
    return {**options, "dialect": config.dialect} if takes_dialect else options


def _takes_any_keyword(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _is_stateful(cls: type, name: str) -> bool:
    """`step(self, action)` mutates the object, `step(self, state, action)` does not."""
    if not (callable(getattr(cls, "reset", None)) and callable(getattr(cls, "step", None))):
        raise UserError(f"environment.name: {name} is a class without `reset` and `step`")
    count = len(inspect.signature(cls.step).parameters) - 1  # type: ignore[attr-defined]  # looked up above
    if count not in (1, 2):
        raise UserError(f"environment.name: {name}.step must take (action) or (state, action)")
    return count == 1
