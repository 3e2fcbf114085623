"""Ctrl-C or SIGTERM -> a clean stop: what is being written is finished, what can be abandoned is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from treegrpo_cli import signals
from treegrpo_cli.errors import Stopped

Result = TypeVar("Result")


class StopRequest:
    """While entered, the first signal is noted and abandons the coroutine in `run`; a second one ends the program."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._task: asyncio.Task[Any] | None = None
        self._beside: set[asyncio.Task[Any]] = set()
        self._reacting = ExitStack()

    def __enter__(self) -> Self:
        self._reacting.enter_context(signals.react(self._on_signal))
        self.signal_number = signals.first_signal()  # one that came to an earlier part of the program
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._reacting.close()

    def _on_signal(self, number: int) -> None:
        self.signal_number = number
        for task in (self._task, *self._beside):
            if task is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)

    def abandons(self, task: asyncio.Task[Any]) -> None:
        """Let the first signal cancel this task too, also while `run` does not run."""
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def check(self) -> None:
        """Raise Stopped where a signal came."""
        if self.signal_number:
            raise Stopped(self.signal_number)

    def run(self, runner: asyncio.Runner, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` to its end, or raise Stopped where a signal came meanwhile."""

        async def watched() -> Result:
            self._task = asyncio.current_task()
            self.check()  # a signal that came before there was a task to cancel
            return await work

        try:
            self.check()
            return runner.run(watched())
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            self._task = None
            work.close()
