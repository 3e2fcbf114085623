"""The program of a worker: opens the world that it is sent, and serves it until its driver is done or gone.

Started with two descriptors: a socket for messages, and a pipe that nobody writes to. The kernel ends the worker, and
what it started, when the pipe's other end closes, whatever the interpreter does then.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from typing import Any

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs import load_environment
from treegrpo_cli.errors import UserError
from treegrpo_cli.workers.frames import HEAD, frame
from treegrpo_cli.workers.plain import NotPlainError, from_bytes
from treegrpo_cli.workers.raised import as_data
from treegrpo_cli.workers.serving import Server

NICE = 5
"""Where there are fewer cores than processes, the engine goes first."""


def main() -> None:
    """Run a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, lifeline = (int(number) for number in sys.argv[1:3])
    sys.argv = [""]
    for descriptor in (channel, lifeline):
        os.set_inheritable(descriptor, False)
    _end_with(lifeline)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe, as subprocess made it
    with socket.socket(fileno=channel) as connection:
        asyncio.run(_serve(connection))


def _end_with(lifeline: int) -> None:
    """Have the kernel end this process group when the pipe closes: SIGIO ends whom it finds unprepared."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


async def _serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    loop = asyncio.get_running_loop()

    def send(message: dict[str, Any]) -> None:
        writer.write(frame(message))

    opening = await _next(reader)
    _Forwarding(loop, send).install(opening["level"])
    os.nice(NICE)
    if opening["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, opening["cpus"])
    try:
        server = Server(load_environment(EnvironmentConfig(**opening["environment"]), opening["limits"]), send)
        send({"ready": server.facts})
    except UserError as error:
        send({"failed": as_data(error)})
    except NotPlainError as error:
        line = f"environment.name: with environment.workers, `tools` must be plain data, got {error}"
        send({"failed": as_data(UserError(line))})
    else:
        while server.closing is None:
            server.take(await _next(reader))
        await server.closing
    await writer.drain()
    writer.close()


async def _next(reader: asyncio.StreamReader) -> Any:
    try:
        (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
        return from_bytes(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):  # the driver is gone
        os.killpg(0, signal.SIGKILL)


class _Forwarding(logging.Handler):
    """Hands what is logged here to the driver."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Any) -> None:
        super().__init__()
        self._loop, self._send = loop, send

    def install(self, level: int) -> None:
        """Take what all loggers say from this level on."""
        root = logging.getLogger()
        root.setLevel(level)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = {"log": [record.name, record.levelno, self.format(record)]}
            self._loop.call_soon_threadsafe(self._send, message)
        except Exception:  # a user's own arguments may not fit, and at the end there is no loop
            self.handleError(record)
