"""PAGER -> a stream that it reads, as git has it: `less -FRX` by default, none where it is `cat` or empty; no shell."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TextIO

DEFAULT = "less"
ENVIRONMENT = {"LESS": "FRX", "LV": "-c"}
"""What pagers are told unless the user tells them: end on a short text, show colours, leave the text on the screen."""


class _LeftPager(BaseException):
    """Whoever read has seen enough: raised wherever the program is, which may be far from the next line."""


@contextmanager
def paged(otherwise: TextIO) -> Iterator[TextIO]:
    """Yield a stream into the pager, or `otherwise` where there is none; wait until its reader has left.

    Ctrl-C is the pager's own as long as it runs.
    """
    with ExitStack() as stack:
        stack.enter_context(_signals_left_alone())
        process = _started()
        if process is None or process.stdin is None:
            stack.close()
            yield otherwise
            return
        stream = io.TextIOWrapper(process.stdin, "utf-8", "replace", line_buffering=True)
        try:
            with suppress(BrokenPipeError, _LeftPager), _watched(process):
                yield stream
        finally:
            with suppress(BrokenPipeError):
                stream.close()
            process.wait()


def _started() -> subprocess.Popen[bytes] | None:
    given = os.environ.get("PAGER")
    try:
        command = shlex.split(DEFAULT if given is None else given)
        if command in ([], ["cat"]):
            return None
        return subprocess.Popen(command, stdin=subprocess.PIPE, env={**ENVIRONMENT, **os.environ})  # noqa: S603
    except (OSError, ValueError) as error:
        if given is not None:
            warnings.warn(f"PAGER {given}: {getattr(error, 'strerror', None) or error}", stacklevel=2)
        return None


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakeup = signal.set_wakeup_fd(-1)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(wakeup)


@contextmanager
def _watched(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Raise _LeftPager inside as soon as the process ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watching = True

    def on_end(_number: int, _frame: FrameType | None) -> None:
        if watching and process.poll() is not None:
            raise _LeftPager

    before = signal.signal(signal.SIGCHLD, on_end)
    try:
        yield
    finally:
        watching = False
        signal.signal(signal.SIGCHLD, before)
