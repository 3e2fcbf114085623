"""Coroutines of one server's client -> their answers, from an event loop in a thread of its own.

So connections live on whichever loop asks, a loop that people's code blocks lets no answer time out, and what is no
coroutine (weights, checks) asks by the same client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from threading import Lock, Thread
from typing import Any, TypeVar

from treegrpo_cli.samplers.replicas import ReplicaGoneError

Answer = TypeVar("Answer")

END_S, TURNS = 5.0, 3
"""Seconds that the end of a thread is waited for, and turns of its loop behind the last coroutine."""


class ServerThread:
    """An event loop in a daemon thread, until `end`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = Lock()
        self._is_ended = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Await it there; cancelling the caller cancels it. Raises ReplicaGoneError where the thread has ended."""
        future = self._start(coroutine)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_ended:
                raise ReplicaGoneError("closed") from None
            raise

    def wait(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Block until it has ended."""
        future = self._start(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise ReplicaGoneError("closed") from None
        except BaseException:  # Ctrl-C, while it goes on
            future.cancel()
            raise

    def end(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what runs, await `last`, and end the thread. Twice is fine."""
        with self._lock:
            if self._is_ended:
                last.close()
                return
            self._is_ended = True
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        self._thread.join(END_S)

    def _start(self, coroutine: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        with self._lock:
            if self._is_ended:
                coroutine.close()
                raise ReplicaGoneError("closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        try:
            await last
            for _ in range(TURNS):  # in which connections that were closed are let go
                await asyncio.sleep(0)
            await self._loop.shutdown_asyncgens()
        finally:
            self._loop.stop()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
