"""Environment + action -> a result or one ToolError: timeouts, retries, and a limit on concurrent calls.

An environment is pure in its path, which is what makes a second attempt safe. A second attempt is made where the
world outside failed (see `outside`): what a tool raises by itself it would raise again, so that is shown to the
policy, or closes the branch, as `environment.tool_errors` says.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs.answers import state_and_messages, state_and_result
from treegrpo_cli.envs.base import Environment
from treegrpo_cli.envs.outside import is_outside
from treegrpo_cli.envs.reports import error_text, report_raised
from treegrpo_cli.errors import LastToolError, NoAnswerError, ToolError, UserCodeError, UserError
from treegrpo_cli.types import Action, Message, StepResult, Task
from treegrpo_cli.user_code import call, looking_at_answers

CLOSE_TIMEOUT_S = 10.0
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0

logger = logging.getLogger(__name__)
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Semaphore]] = WeakKeyDictionary()


async def check_environment(environment: Environment[Any], timeout_s: float) -> None:
    """Raise UserError where the environment says that it cannot work; one without `check()` always can."""
    check = getattr(environment, "check", None)
    if check is None:
        return
    try:
        await call(check, timeout_s=timeout_s)
    except UserCodeError as error:
        raise UserError(f"environment: check() failed: {error.reason}", error.trace) from error
    except NoAnswerError as error:
        raise UserError(f"environment: check() gave {error.reason} (environment.check_timeout_s)") from error


async def reset_with_retries(
    environment: Environment[Any], task: Task, config: EnvironmentConfig
) -> tuple[Any, list[Message]]:
    """Return the state before the first turn and the prompt's messages.

    Raises ToolError where the environment raised or kept silent, or returned no `(state, messages)`.
    """
    try:
        answer = await _with_retries(lambda: call(environment.reset, task, timeout_s=config.tool_timeout_s), config)
        with looking_at_answers():
            return state_and_messages(answer)
    except UserCodeError as error:
        raise ToolError(error.reason, error.trace) from error


async def step_with_retries(
    environment: Environment[Any], state: Any, action: Action, config: EnvironmentConfig
) -> tuple[Any, StepResult]:
    """Return the new state and the observation of one action.

    Each attempt has `tool_timeout_s` seconds from when one of the `max_concurrent_tools` slots is free.

    Raises ToolError where the branch is to be closed: the world outside failed or kept silent in every attempt,
    `step` returned no `(state, StepResult)`, or it raised and `tool_errors` is `close`.
    """
    try:
        answer = await _with_retries(
            lambda: call(environment.step, state, action, timeout_s=config.tool_timeout_s), config
        )
        with looking_at_answers():
            return state_and_result(answer)
    except UserCodeError as error:
        if config.tool_errors == "close" or isinstance(error.__cause__, UserError):
            raise ToolError(error.reason, error.trace) from error
        report_raised("environment", error)
        return state, _shown(action, error)


async def key_of_state(environment: Environment[Any], state: Any, config: EnvironmentConfig) -> int:
    """Return 64 bits of a digest of the environment's `state_key(state)`, never 0; 0 where it has no such method.

    Raises ToolError where it raised, kept silent, or returned something else than a string, bytes or an integer.
    """
    state_key = getattr(environment, "state_key", None)
    if not callable(state_key):
        return 0
    try:
        key = await _with_retries(lambda: call(state_key, state, timeout_s=config.tool_timeout_s), config)
    except UserCodeError as error:
        raise ToolError(f"state_key: {error.reason}", error.trace) from error
    if type(key) not in (str, bytes, int):
        raise ToolError(f"environment: state_key must return a str, bytes or an int, got a {type(key).__name__}")
    written = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(type(key).__name__.encode() + b":" + written, digest_size=8).digest()
    return int.from_bytes(digest) or 1


async def close_environment(environment: Environment[Any], timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Call the environment's `close()`, where it has one; what fails is logged."""
    await _close(environment, "environment", timeout_s)


async def close_states(states: Iterable[Any], timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Call `close()` of each of these states that has one, once, side by side; what fails is logged."""
    different = {id(state): state for state in states}
    await asyncio.gather(*(_close(state, "state", timeout_s) for state in different.values()))


async def _close(thing: Any, what: str, timeout_s: float) -> None:
    close = getattr(thing, "close", None)
    if not callable(close):
        return
    try:
        await call(close, timeout_s=timeout_s)
    except UserCodeError as error:
        report_raised(f"{what}.close()", error)
    except NoAnswerError as error:
        logger.warning("%s.close(): %s", what, error.reason)


async def _with_retries(attempt: Callable[[], Awaitable[Any]], config: EnvironmentConfig) -> Any:
    """Return the first answer. What user code raised by itself flies; the last failure outside is a ToolError."""
    reason, trace = "", tuple[str, ...]()
    for retry in range(config.tool_retries + 1):
        if retry:
            await asyncio.sleep(min(FIRST_BACKOFF_S * 2 ** (retry - 1), MAX_BACKOFF_S))
        async with _slot(config.max_concurrent_tools):
            try:
                return await attempt()
            except LastToolError:
                raise
            except ToolError as error:
                reason, trace = str(error), error.trace
            except NoAnswerError as error:
                reason, trace = error.reason, ()
            except UserCodeError as error:
                if not is_outside(error):
                    raise
                reason, trace = error.reason, error.trace
    attempts = f" ({config.tool_retries + 1} attempts)" if config.tool_retries else ""
    raise ToolError(f"{reason}{attempts}", trace)


def _slot(max_concurrent_tools: int) -> asyncio.Semaphore:
    """A semaphore belongs to the loop that it first waited in, and a program may run several in turn."""
    by_limit = _slots.setdefault(asyncio.get_running_loop(), {})
    return by_limit.setdefault(max_concurrent_tools, asyncio.Semaphore(max_concurrent_tools))


def _shown(action: Action, error: UserCodeError) -> StepResult:
    """What the policy sees where a world's `step` raised: one failed call, which left the state as it was."""
    message = {"role": "user", "content": error_text(error)}
    if action.tool_calls:
        message = {**message, "role": "tool", "name": action.tool_calls[0].name}
    return StepResult((message,), num_tool_calls=1, num_failed_tool_calls=1)
