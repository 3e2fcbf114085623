"""Environment + action -> a result or one ToolError: timeouts, retries, and a limit on concurrent calls.

An environment is pure in its path, which is what makes a second attempt safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs.base import Environment
from treegrpo_cli.errors import NoAnswerError, ToolError, UserCodeError, UserError
from treegrpo_cli.types import Action, Message, StepResult, Task
from treegrpo_cli.user_code import call, one_line

Result = TypeVar("Result")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0

_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Semaphore]] = WeakKeyDictionary()


async def check_environment(environment: Environment[Any]) -> None:
    """Raise UserError where the environment says that it cannot work; one without `check()` always can."""
    check = getattr(environment, "check", None)
    if check is not None:
        await call(check)


async def reset_with_retries(
    environment: Environment[Any], task: Task, config: EnvironmentConfig
) -> tuple[Any, list[Message]]:
    """Return the state before the first turn and the prompt's messages.

    Raises:
        ToolError: the environment failed or kept silent in every attempt.
        UserError: it returned something that is no `(state, messages)`.
    """
    answer = await _with_retries(lambda: call(environment.reset, task, timeout_s=config.tool_timeout_s), config)
    state, messages = _pair(answer, "reset", "(state, messages)")
    return state, _messages(messages, "reset")


async def step_with_retries(
    environment: Environment[Any], state: Any, action: Action, config: EnvironmentConfig
) -> tuple[Any, StepResult]:
    """Return the new state and the observation of one action.

    Each attempt has `tool_timeout_s` seconds from when one of the `max_concurrent_tools` slots is free.

    Raises:
        ToolError: the environment failed or kept silent in every attempt.
        UserError: it returned something that is no `(state, StepResult)`.
    """
    answer = await _with_retries(lambda: call(environment.step, state, action, timeout_s=config.tool_timeout_s), config)
    state, result = _pair(answer, "step", "(state, StepResult)")
    if not isinstance(result, StepResult):
        raise UserError(f"environment: step must return (state, StepResult), got a {type(result).__name__}")
    _messages(result.observation, "step")
    return state, result


async def _with_retries(attempt: Callable[[], Awaitable[Any]], config: EnvironmentConfig) -> Any:
    reason = ""
    for retry in range(config.tool_retries + 1):
        if retry:
            await asyncio.sleep(min(FIRST_BACKOFF_S * 2 ** (retry - 1), MAX_BACKOFF_S))
        async with _slot(config.max_concurrent_tools):
            try:
                return await attempt()
            except (ToolError, NoAnswerError, UserCodeError) as error:
                if isinstance(error.__cause__, UserError):
                    raise error.__cause__ from None
                reason = _describe(error)
    attempts = f" ({config.tool_retries + 1} attempts)" if config.tool_retries else ""
    raise ToolError(f"{reason}{attempts}")


def _slot(max_concurrent_tools: int) -> asyncio.Semaphore:
    """A semaphore belongs to the loop that it first waited in, and a program may run several in turn."""
    by_limit = _slots.setdefault(asyncio.get_running_loop(), {})
    return by_limit.setdefault(max_concurrent_tools, asyncio.Semaphore(max_concurrent_tools))


def _describe(error: Exception) -> str:
    return error.reason if isinstance(error, UserCodeError) else one_line(str(error))


def _pair(answer: Any, method: str, expected: str) -> tuple[Any, Any]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise UserError(f"environment: {method} must return {expected}, got a {type(answer).__name__}")
    return answer


def _messages(messages: Any, method: str) -> list[Message]:
    if isinstance(messages, (list, tuple)) and all(map(_is_message, messages)):
        return list(messages)
    raise UserError(f"environment: {method} must give messages of role and content (text), got {messages!r:.200}")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and "role" in message and isinstance(message.get("content"), str)
