"""Module + arguments -> a process that runs them and writes to a log; on Linux a fork of what is imported already.

Elsewhere a fork is not safe behind torch's threads, and every process starts anew. Processes have a session of their
own: Ctrl-C on the terminal reaches who started them, and that one tells them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from treegrpo_cli.errors import FailedRunError


class Process(Protocol):
    """One that was started."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code (negative: ended by that signal), None while it runs."""


class Launcher(Protocol):
    """What starts processes; those that still run when it is closed are asked to stop."""

    def start(self, module: str, arguments: Sequence[str], log: Path, num_threads: int = 0) -> Process:
        """Start `python -m MODULE ARGUMENTS` on so many threads (0: as it decides); what it says goes to `log`."""

    def close(self) -> None:
        """Wait for what still runs."""


def open_launcher() -> Launcher:
    """Return what starts processes on this machine."""
    return Zygote() if sys.platform == "linux" else Spawner()


class Forked:
    """A fork of the zygote."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Ask the zygote, whose child it is."""
        if self._code is None:
            self._code = self._zygote.ask({"poll": self.pid})
        return self._code


class Zygote:
    """The process that has imported everything, started with the first command."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, module: str, arguments: Sequence[str], log: Path, num_threads: int = 0) -> Forked:
        """Fork."""
        request = {"module": module, "arguments": list(arguments), "log": str(log), "num_threads": num_threads}
        return Forked(self, int(self.ask(request)))

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        process = self._process or self._open()
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the zygote has pipes")
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise FailedRunError(f"the process that starts runs has ended, by code {process.wait()}")
        return json.loads(line)

    def _open(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "treegrpo_cli.compare.zygote"]
        self._process = process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._closing.enter_context(process)
        if process.stdin is not None:
            self._closing.enter_context(closing(process.stdin))
        return process

    def close(self) -> None:
        """End the zygote, which asks its children to stop, and waits."""
        self._closing.close()
        self._process = None


class Spawner:
    """Starts every process anew."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, arguments: Sequence[str], log: Path, num_threads: int = 0) -> subprocess.Popen[bytes]:
        """Start Python."""
        threads = {"OMP_NUM_THREADS": str(num_threads)} if num_threads else {}
        with open(log, "ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | threads,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Ask what still runs to stop, and wait."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            process.wait()
