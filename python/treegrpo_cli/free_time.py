"""Seconds -> a time limit that counts only those in which the event loop was free to take an answer.

An engine's step blocks the loop. A tool that answers meanwhile has answered in time, so a blocked second
counts for nobody: whoever blocks says so by `busy()`, whoever waits for the world does so in `free_timeout()`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

SHORT_S = 0.005
"""Who blocks for less than this has hardly blocked: the loop turned in between, and the time counts as free."""


class _Clock(threading.local):
    """Of one thread's event loop: seconds it was blocked for so far, and how many limits are running."""

    def __init__(self) -> None:
        self.blocked_s = 0.0
        self.busy_depth = 0
        self.num_waiting = 0


_clock = _Clock()


@contextmanager
def busy() -> Iterator[None]:
    """Mark what blocks this thread's event loop; may be nested."""
    start = time.monotonic()
    _clock.busy_depth += 1
    try:
        yield
    finally:
        _clock.busy_depth -= 1
        blocked_s = time.monotonic() - start
        if not _clock.busy_depth and blocked_s >= SHORT_S:
            _clock.blocked_s += blocked_s


def free_seconds() -> float:
    """A clock that stands still while this thread's event loop is blocked."""
    return time.monotonic() - _clock.blocked_s


def num_waiting() -> int:
    """How many coroutines of this thread's event loop wait for the world in an urgent `free_timeout`."""
    return _clock.num_waiting


@asynccontextmanager
async def free_timeout(seconds: float, *, urgent: bool = True) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body and raise TimeoutError after so many seconds in which the event loop was free.

    What nothing else goes on from, a reward say, is not `urgent`: it does not count in `num_waiting`.

    A loop that something blocked without saying so wakes late: what became ready meanwhile gets, once, as
    long again as it was late. The limit's `expired()` tells its own TimeoutError from the body's.

    >>> async def wait() -> str:
    ...     try:
    ...         async with free_timeout(0.01):
    ...             await asyncio.sleep(60)
    ...     except TimeoutError:
    ...         return "too late"
    >>> asyncio.run(wait())
    'too late'
    """
    loop = asyncio.get_running_loop()
    _clock.num_waiting += urgent
    try:
        async with asyncio.timeout(None) as limit:
            timer = _Timer(loop, seconds, limit)
            try:
                yield limit
            finally:
                timer.stop()
    finally:
        _clock.num_waiting -= urgent


class _Timer:
    """Lets a limit expire when its free seconds are over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, limit: asyncio.Timeout) -> None:
        self._loop, self._limit = loop, limit
        self._end = free_seconds() + seconds
        self._was_late = False
        self._handle = loop.call_later(seconds, self._check)

    def _check(self) -> None:
        left = self._end - free_seconds()
        if left <= 0 and not self._was_late and -left >= SHORT_S:
            self._was_late = True
            left = -left
            self._end += 2 * left
        if left > 0:
            self._handle = self._loop.call_later(left, self._check)
        else:
            self._limit.reschedule(self._loop.time())

    def stop(self) -> None:
        self._handle.cancel()
