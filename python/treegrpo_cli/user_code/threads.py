"""A function or a coroutine -> its answer, from a daemon thread: nothing that it does stops or ends ours.

A plain function has a thread of its own. Coroutines share one event loop in a thread, so that clients and locks
that they keep stay good from call to call; a loop that one of them blocks is left to it, and the next calls get a
new one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from treegrpo_cli.user_code.raised import user_code_error

logger = logging.getLogger(__name__)

BLOCKED_S = 1.0
"""A loop that has not turned for so long is blocked by what runs in it."""

begun: ContextVar[set[Future[Any]] | None] = ContextVar("begun", default=None)
"""Where a task sets it, all that is begun for it and those that it starts: who gives up on them can tell what is left
of them."""


def in_thread(function: Callable[[], Any]) -> Future[Any]:
    """Run a plain function in a daemon thread; what it raises is a `UserCodeError` in the future."""
    answer = _running_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            answer.set_exception(user_code_error(error))
        else:
            answer.set_result(result)

    threading.Thread(target=run, daemon=True, name="treegrpo-tool").start()
    return answer


def _running_future() -> Future[Any]:
    """A future that who waits for it cannot cancel: its thread goes on, and sets it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    noted = begun.get()
    if noted is not None:
        noted.add(future)
    return future


class LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._posted: deque[float] = deque()
        """When what has not begun yet was posted; the loop begins it in the same order."""
        self._num_running = 0
        self._is_left = False
        threading.Thread(target=self._run, daemon=True, name="treegrpo-async-tools").start()

    def start(self, make: Callable[[], Awaitable[Any]]) -> Running:
        """Await what `make` returns."""
        with self._lock:
            self._num_running += 1
        running = Running(self, make)
        self.post(running.begin)
        return running

    def post(self, callback: Callable[[], Any]) -> None:
        """Call `callback` in the loop's thread; from any thread."""

        def run() -> None:
            self._posted.popleft()
            callback()

        with self._lock:
            if not self.loop.is_closed():
                self._posted.append(time.monotonic())
                self.loop.call_soon_threadsafe(run)

    def is_blocked(self) -> bool:
        """Whether something has waited for the loop's next turn for longer than `BLOCKED_S`."""
        try:
            return time.monotonic() - self._posted[0] > BLOCKED_S
        except IndexError:  # nothing waits
            return False

    def leave(self) -> None:
        """Take no new work, and end when what runs has ended."""
        self._is_left = True
        self.post(self._stop_if_idle)

    def ended_one(self) -> None:
        """Count a coroutine less; in the loop's thread."""
        with self._lock:
            self._num_running -= 1
        self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if self._is_left and not self._num_running:
            self.loop.stop()

    def _run(self) -> None:
        while not (self._is_left and not self._num_running):
            try:
                self.loop.run_forever()
            except BaseException as error:  # a task that user code started itself: it ends no other
                logger.debug("a background task raised %s", type(error).__name__)
        with self._lock:
            self.loop.close()


class Running:
    """A coroutine of the user's in a `LoopThread`; `answer` is its result, or a `UserCodeError`."""

    def __init__(self, thread: LoopThread, make: Callable[[], Awaitable[Any]]) -> None:
        self.answer = _running_future()
        self._thread, self._make = thread, make
        self._task: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._has_begun = self._is_withdrawn = False

    def begin(self) -> None:
        """Start the task; in the loop's thread."""
        with self._lock:
            self._has_begun = not self._is_withdrawn
        if self._has_begun:
            self._task = self._thread.loop.create_task(self._await())
        else:
            self._thread.ended_one()

    def withdraw(self) -> bool:
        """Take back what has not begun, so that it can be started elsewhere; return whether that was so."""
        with self._lock:
            self._is_withdrawn = not self._has_begun
        if self._is_withdrawn:
            self.answer.set_result(None)
        return self._is_withdrawn

    async def _await(self) -> None:
        try:
            result = await self._make()
        except BaseException as error:  # nobody reads the answer of a coroutine that we cancelled
            self.answer.set_exception(user_code_error(error))
        else:
            self.answer.set_result(result)
        finally:
            self._thread.ended_one()

    def cancel(self) -> None:
        """Ask the coroutine to end; from any thread."""
        self._thread.post(lambda: self._task and self._task.cancel())


_lock = threading.Lock()
_current: LoopThread | None = None


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _lock, _current
    _lock, _current = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)


def in_loop_thread(make: Callable[[], Awaitable[Any]]) -> Running:
    """Start a coroutine in the loop that all coroutines of users share."""
    global _current
    with _lock:
        if _current is not None and _current.is_blocked():
            logger.warning(
                "an async function of yours blocks its event loop; as a plain function it would have its own thread"
            )
            _current.leave()
            _current = None
        if _current is None:
            _current = LoopThread()
        return _current.start(make)
