"""Whatever an environment returned -> plain messages, results and tools, or one line that says what is wrong."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import orjson

from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Message, StepResult
from treegrpo_cli.user_code import clean

Value = TypeVar("Value")

MAX_COUNT = 2**31 - 1
MAX_CONTENT_CHARS = 1 << 22
"""What stands behind is cut: far more than any policy reads."""


def state_and_messages(answer: Any) -> tuple[Any, list[Message]]:
    """Return what `reset` gave. Raises ToolError where it is no `(state, messages)`."""
    state, messages = _pair(answer, "reset", "(state, messages)")
    return state, checked_messages(messages, "reset")


def state_and_result(answer: Any) -> tuple[Any, StepResult]:
    """Return what `step` gave. Raises ToolError where it is no `(state, StepResult)`."""
    state, result = _pair(answer, "step", "(state, StepResult)")
    if not isinstance(result, StepResult):
        raise ToolError(f"environment: step must return (state, StepResult), got a {type(result).__name__}")
    return state, checked_result(result)


def checked_result(result: StepResult) -> StepResult:
    """Return the result with plain values: numbers of numpy become Python's, lone surrogates question marks."""
    checked = StepResult(
        tuple(checked_messages(result.observation, "step")),
        _field("done", result.done, "True or False", _truth),
        _field("num_tool_calls", result.num_tool_calls, "a count", _count),
        _field("num_failed_tool_calls", result.num_failed_tool_calls, "a count", _count),
        _field("reward", result.reward, "a finite number or None", _reward),
    )
    if checked.num_failed_tool_calls > checked.num_tool_calls:
        counts = f"{checked.num_failed_tool_calls} of {checked.num_tool_calls}"
        raise ToolError(f"environment: step says that more tool calls failed than ran ({counts})")
    return checked


def checked_messages(messages: Any, method: str) -> list[Message]:
    """Return messages whose content is clean text. Raises ToolError for anything else."""
    if isinstance(messages, (list, tuple)) and all(map(_is_message, messages)):
        cleaned = [
            {k: clean(v[:MAX_CONTENT_CHARS]) if isinstance(v, str) else v for k, v in message.items()}
            for message in messages
        ]
        try:
            orjson.dumps(cleaned)
        except TypeError as error:
            raise ToolError(f"environment: {method} gave a message that is not JSON: {error}") from None
        return cleaned
    expected = "a list of messages, each a dict with role and content (text)"
    raise ToolError(f"environment: {method} must give {expected}, got {shown(messages)}")


def checked_tools(tools: Any, name: str) -> Sequence[dict[str, Any]]:
    """Return an environment's tools.

    Raises:
        UserError: they are no list of schemas such as `tool_schema` makes.
    """
    if not isinstance(tools, (list, tuple)) or not all(map(_is_tool, tools)):
        example = '{"type": "function", "function": {"name": "search", "parameters": {...}}}'
        got = "none" if tools is None else f"got {shown(tools)}"
        raise UserError(f"environment.name: {name} needs an attribute `tools`: a list of {example}, or (); {got}")
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise UserError(f"environment.name: {name}.tools has two tools of one name: {', '.join(names)}")
    return tools


def shown(value: Any) -> str:
    """Return a short text of a value; of people's own objects their type alone, since their text may do anything.

    >>> shown({"content": object()})
    "{'content': a object}"
    """
    try:
        return clean(_SHORT.repr(value))[:200]
    except Exception:  # a number of 5,000 digits
        return f"a {type(value).__name__}"


class _Short(reprlib.Repr):
    def repr_instance(self, value: Any, level: int) -> str:
        return repr(value) if type(value) in (bool, float, type(None)) else f"a {type(value).__name__}"


_SHORT = _Short()


def _pair(answer: Any, method: str, expected: str) -> tuple[Any, Any]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ToolError(f"environment: {method} must return {expected}, got a {type(answer).__name__}")
    return answer


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        and all(isinstance(key, str) for key in message)
    )


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    parameters = function.get("parameters", {})
    return isinstance(parameters, dict) and isinstance(parameters.get("properties", {}), dict)


def _field(name: str, value: Any, expected: str, convert: Callable[[Any], Value]) -> Value:
    try:
        return convert(value)
    except Exception:  # people's own objects may raise anything here
        raise ToolError(f"environment: step's {name} must be {expected}, got {shown(value)}") from None


def _truth(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not 0 <= operator.index(value) <= MAX_COUNT:
        raise ValueError
    return operator.index(value)


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError
    return float(value)
