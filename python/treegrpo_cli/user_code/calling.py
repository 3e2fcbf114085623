"""Function of the user's + arguments -> its answer, one `UserCodeError`, or one `NoAnswerError`."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from treegrpo_cli.errors import NoAnswerError
from treegrpo_cli.free_time import free_timeout
from treegrpo_cli.user_code import threads
from treegrpo_cli.user_code.threads import in_loop_thread, in_thread

OUR_PACKAGE = __name__.partition(".")[0]


async def call(
    function: Callable[..., Any], /, *args: Any, timeout_s: float | None = None, urgent: bool = True, **kwargs: Any
) -> Any:
    """Call a function, plain or `async`, where it can neither block the event loop nor end the program.

    Plain ones run in a daemon thread, coroutines in an event loop of their own (see `threads`); functions of this
    package run here as they are, and their errors are our own. `timeout_s` counts seconds in which this loop was
    free, and where nothing else goes on from the answer the call is not `urgent`; a function that itself takes a
    parameter of these names is given as a `functools.partial`.

    >>> asyncio.run(call(divmod, 7, 2))
    (3, 1)

    Raises:
        UserCodeError: it raised; any BaseException, SystemExit and CancelledError among them.
        NoAnswerError: the time is over. A coroutine is cancelled; a thread cannot be ended and is left alone.
    """
    work = functools.partial(function, *args, **kwargs)
    if timeout_s is None:
        return await _run(function, work)
    try:
        async with free_timeout(timeout_s, urgent=urgent) as limit:
            return await _run(function, work)
    except TimeoutError:
        if not limit.expired():
            raise
        raise NoAnswerError(timeout_s) from None


def run_apart(function: Callable[[], Any]) -> None:
    """Call a function, plain or `async`, and wait for nothing: neither its answer nor what it raises."""
    if inspect.iscoroutinefunction(function):
        in_loop_thread(function)
    else:
        in_thread(function)


async def _run(function: Callable[..., Any], work: Callable[[], Any]) -> Any:
    if _is_ours(function):
        result = work()
        return await result if inspect.isawaitable(result) else result
    if inspect.iscoroutinefunction(function):
        return await _in_loop_thread(work)
    result, is_awaitable = await asyncio.wrap_future(in_thread(lambda: _with_kind(work())))
    return await _in_loop_thread(lambda: result) if is_awaitable else result


def _with_kind(result: Any) -> tuple[Any, bool]:
    """Asking an object of the user's what it is may be user code too."""
    return result, inspect.isawaitable(result)


def _is_ours(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    if getattr(owner, "calls_user_code", False):  # an adapter of ours around a class of theirs
        return False
    return str(getattr(function, "__module__", "")).partition(".")[0] == OUR_PACKAGE


async def _in_loop_thread(make: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        running = in_loop_thread(make)
        answer = asyncio.wrap_future(running.answer)
        try:
            await asyncio.wait([answer], timeout=threads.BLOCKED_S)
            if answer.done() or not running.withdraw():
                return await answer
        except asyncio.CancelledError:
            running.cancel()
            answer.cancel()
            raise
        answer.cancel()  # another function blocks that loop: the next turn finds a new one
