"""One worker as the driver knows it: its process, the requests that wait for it, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.workers.frames import Unframer, frame
from treegrpo_cli.workers.output import relay
from treegrpo_cli.workers.raised import as_error

START = "import sys; sys.path[:] = sys.argv[3:]; from treegrpo_cli.workers.process import main; main()"
END_S = 2.0
"""Seconds that a process may take to end when its work is done."""
CHUNK = 1 << 20


class DiedError(Exception):
    """The process ended by itself while this request ran in it."""


class EvictedError(Exception):
    """The process was ended because of another request, or had ended before this one began: it can be asked again."""


class Worker:
    """A process with a world of its own.

    `on_end(worker, why)` is called once, when it ends without being closed; `on_log(name, level, text)` for what is
    logged in it. A request that was given up and still runs `patience_s` later takes the process with it.
    """

    def __init__(
        self,
        opening: dict[str, Any],
        folder: str,
        patience_s: float,
        on_end: Callable[[Worker, str], None],
        on_log: Callable[[str, int, str], None],
    ) -> None:
        self._patience_s, self._on_end, self._on_log = patience_s, on_end, on_log
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._left: set[int] = set()
        """Requests that nobody waits for any more and that still run."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unframer, self._unsent = Unframer(), bytearray()
        self._why = ""
        self.num_trees = 0
        self.is_gone = self.is_closing = False
        self.facts: dict[str, Any] | None = None
        """What it says of its world, once that is open."""
        self.failure: Exception | None = None
        """Why its world could not be opened."""
        self._channel, theirs = socket.socketpair()
        reader, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-c", START, str(theirs.fileno()), str(reader), *_import_path()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), reader),
                cwd=folder,
                process_group=0,
            )
        finally:
            theirs.close()
            os.close(reader)
        relay(self._process)
        self._channel.sendall(frame(opening))

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether its world is open."""
        return self.facts is not None

    @property
    def is_doubtful(self) -> bool:
        """Whether something runs in it that was given up."""
        return bool(self._left)

    def wait(self) -> None:
        """Wait until its world is open. Raises UserError where it cannot be."""
        while self.facts is None and self.failure is None and not self.is_gone:
            self._take(self._channel.recv(CHUNK))
        if self.facts is None:
            raise self.failure or UserError(f"environment: a worker ended while it opened the world ({self._why})")

    def tell(self, message: dict[str, Any]) -> None:
        """Send what has no answer."""
        if not self.is_gone:
            self._send(message)

    async def ask(self, number: int, do: str, **given: Any) -> Any:
        """Return the answer to a request; given up, it is ended there, and what it made is closed.

        Raises DiedError, EvictedError, or what was raised in the worker.
        """
        self._attach()
        if self.is_gone:
            raise EvictedError
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, "do": do, **given})
            return await answer
        except asyncio.CancelledError:
            self._give_up(number)
            raise
        finally:
            del self._waiting[number]

    async def close(self, number: int) -> None:
        """Close its world, and end."""
        self.is_closing = True
        await self.ask(number, "close")
        end = time.monotonic() + END_S
        while self._process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.005)

    def kill(self, why: str) -> None:
        """End the process, and all that it started, at once."""
        if not self.is_gone:
            self._why = why
            self._end()

    def _give_up(self, number: int) -> None:
        if not self.is_gone:
            self._send({"cancel": number})
            self._watch(number)

    def _watch(self, number: int) -> None:
        self._left.add(number)
        asyncio.get_running_loop().call_later(self._patience_s, self._check, number)

    def _check(self, number: int) -> None:
        if number not in self._left or self.is_gone:
            return
        if self.facts is None:  # it has not begun
            self._watch(number)
        else:
            self.kill(f"a call in it did not end within {self._patience_s:g} s of its time limit")

    def _attach(self) -> None:
        """Be read by the loop that runs now: one follows another."""
        loop = asyncio.get_running_loop()
        if loop is self._loop or self.is_gone:
            return
        self._detach()
        self._loop = loop
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._read)
        if self._unsent:
            self._write()

    def _detach(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)

    def _read(self) -> None:
        try:
            self._take(self._channel.recv(CHUNK))
        except BlockingIOError:
            return
        except ConnectionError:
            self._end()

    def _take(self, data: bytes) -> None:
        for message in self._unframer.messages(data):
            self._hear(message)
        if not data:
            self._end()

    def _hear(self, message: dict[str, Any]) -> None:
        if "log" in message:
            self._on_log(*message["log"])
        elif "ended" in message:
            self._left.discard(message["ended"])
        elif "ready" in message:
            self.facts = message["ready"]
        elif "failed" in message:
            self.failure = as_error(message["failed"])
        else:
            self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if message["is_left"]:
            self._watch(number)
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        if "raised" in message:
            answer.set_exception(as_error(message["raised"]))
        else:
            answer.set_result(message["answer"])

    def _send(self, message: dict[str, Any]) -> None:
        """Send what the socket takes now, the rest when it takes more. Raises NotPlainError."""
        is_idle = not self._unsent
        self._unsent += frame(message)
        if is_idle:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._channel.send(self._unsent)]
        except BlockingIOError:
            if self._loop is not None:
                self._loop.add_writer(self._channel, self._write)
            return
        except ConnectionError:  # it is read as the end
            self._unsent.clear()
        if self._loop is not None:
            self._loop.remove_writer(self._channel)

    def _end(self) -> None:
        """Note that the process has ended, or end it."""
        self._detach()
        self.is_gone, was_ours = True, bool(self._why)
        self._reap()
        self._channel.close()
        os.close(self._lifeline)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EvictedError() if was_ours else DiedError(self._why))
        if not self.is_closing:
            self._on_end(self, self._why)

    def _reap(self) -> None:
        """Wait for the process as long as it may take to end by itself, and for what it left behind not at all."""
        if not self._why:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._why = "it closed its socket"
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._why = self._why or _why(code)


def _why(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _import_path() -> list[str]:
    """Where modules are found, also from another folder."""
    return [os.path.abspath(entry) if not entry or os.path.exists(entry) else entry for entry in sys.path]
