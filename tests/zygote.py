"""Commands without their start-up: one process imports the program, and every command is a fork of it.

`python -m treegrpo_cli` takes seconds to import torch and transformers, a fork of what has imported them takes
milliseconds, and from there on both run the same code. Only the first moments of a command need a real start.

    command = zygote().start(["rollout", "settings.toml"], cwd=folder)
    command.send_signal(signal.SIGINT)
    done = command.communicate(timeout=60)
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

PRELOADED = (
    "treegrpo_cli.__main__",
    "treegrpo_cli.cli.app",
    "treegrpo_cli.cli.rollout",
    "treegrpo_cli.cli.train",
    "treegrpo_cli.cli.settings",
    "treegrpo_cli.cli.inspect",
    "treegrpo_cli.run.generate",
    "treegrpo_cli.run.loop",
    "treegrpo_cli.samplers.transformers",
    "treegrpo_cli.envs.search",
    "treegrpo_cli.envs.calculator",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.auto.modeling_auto",
    "tests.runs",
)

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Command:
    """A running command; its output goes to files, so that nobody needs to read while it runs."""

    def __init__(self, zygote: Zygote, pid: int, output: Path) -> None:
        self._zygote, self.pid, self._output = zygote, pid, output
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code as subprocess has it (negative: ended by that signal), None while it runs."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for the end. Raises TimeoutExpired, and kills the command, where it does not come."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout, self._read("out"), self._read("err"))
            time.sleep(0.005)
        assert self.returncode is not None
        return subprocess.CompletedProcess([], self.returncode, self._read("out"), self._read("err"))

    def _read(self, name: str) -> str:
        return (self._output / name).read_text(errors="replace")


class Zygote:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="treegrpo-zygote-")
        self._num_started = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        atexit.register(self.close)

    def start(self, arguments: Sequence[str], cwd: str | Path | None = None, **env: str) -> Command:
        """Start `treegrpo` with these arguments, in `cwd`, with `env` beside this process's variables."""
        self._num_started += 1
        output = Path(self._folder.name) / str(self._num_started)
        output.mkdir()
        request = {"arguments": list(arguments), "cwd": str(cwd or Path.cwd()), "output": str(output)}
        pid = self.ask({**request, "env": {**os.environ, "COLUMNS": "80", **env}})
        return Command(self, pid, output)

    def run(
        self, arguments: Sequence[str], cwd: str | Path | None = None, timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return self.start(arguments, cwd, **env).communicate(timeout)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


@cache
def zygote() -> Zygote:
    """The zygote of this process, started when it is first needed."""
    return Zygote()


def _serve() -> None:
    """Answer requests until standard input ends."""
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        answers.write(json.dumps(_poll(request["poll"]) if "poll" in request else _fork(request)) + "\n")


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _fork(request: dict[str, Any]) -> int:
    for name in ("out", "err"):
        Path(request["output"], name).touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the command itself sees to signals
    pid = os.fork()
    if pid == 0:
        _become(request)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    return pid


def _become(request: dict[str, Any]) -> None:
    """Run the command as a process of its own would, and never return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        for descriptor, source in ((0, os.devnull), (1, f"{request['output']}/out"), (2, f"{request['output']}/err")):
            opened = os.open(source, os.O_RDWR)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        sys.argv = ["treegrpo", *request["arguments"]]
        from treegrpo_cli.__main__ import install, main

        install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


if __name__ == "__main__":
    _serve()
