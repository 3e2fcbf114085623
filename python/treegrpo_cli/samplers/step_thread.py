"""A blocking function -> its answer, while the event loop goes on: one thread that runs one call at a time."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class StepThread(Generic[Answer]):
    """A daemon thread, so that a call which never ends cannot hold up the program's end.

    An executor's thread would; and it takes twice as long to hand a call over.
    """

    def __init__(self, name: str, function: Callable[[], Answer]) -> None:
        self._function = function
        self._prepare = torch_settings()
        self._jobs: queue.SimpleQueue[asyncio.Future[Answer] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def call(self) -> Answer:
        """Call the function there. Who is cancelled here leaves it running: see `join`."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._idle.clear()
        self._jobs.put(answer)
        return await answer

    def join(self) -> None:
        """Block until no call runs."""
        self._idle.wait()

    def end(self) -> None:
        """Let the thread end behind its call."""
        self._jobs.put(None)

    def _work(self) -> None:
        self._prepare()
        while (answer := self._jobs.get()) is not None:
            try:
                result = self._function()
            except BaseException as error:
                settle: Callable[[], None] = _raiser(answer, error)
            else:
                settle = _setter(answer, result)
            self._idle.set()
            with suppress(RuntimeError):  # a loop that was closed meanwhile; nobody waits any more
                answer.get_loop().call_soon_threadsafe(settle)


def torch_settings() -> Callable[[], None]:
    """Return what gives another thread this one's number of threads, and its device and stream of CUDA.

    What was queued on a stream by one of the two is done before what the other queues behind it.
    """
    import torch

    num_threads = torch.get_num_threads()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def apply() -> None:
        torch.set_num_threads(num_threads)
        if stream is not None:
            torch.cuda.set_device(stream.device)
            torch.cuda.set_stream(stream)

    return apply


def _setter(answer: asyncio.Future[Answer], result: Answer) -> Callable[[], None]:
    return lambda: None if answer.done() else answer.set_result(result)


def _raiser(answer: asyncio.Future[Answer], error: BaseException) -> Callable[[], None]:
    return lambda: None if answer.done() else answer.set_exception(error)
