"""Ctrl-C or SIGTERM -> the first ends what is in hand, the second ends the program at once.

Python runs a signal's handler in the main thread, between two of its instructions: an engine's step or an update may
keep it waiting for minutes. So a thread of its own waits for the second signal, and only `react` decides what the first
one does. Where nothing reacts, a signal ends the program in one line: nothing is raised, which a library's `__del__` or
`except` would swallow and carry on. What is written is written so that a kill does no harm. This is the first module
that the program imports, and it imports what the interpreter has built in: a signal before `install` is Python's own
traceback.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, without its imports
import _thread
import os
import time

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, NoReturn, Self

    Reaction = Callable[[int], None]

SIGNALS = (_signal.SIGINT, _signal.SIGTERM)

PATIENCE_S = 2.0
"""A stop that takes longer says how to get out."""


class _Watch:
    """What came so far, and what the first signal does."""

    is_installed = False
    first = 0
    reaction: Reaction | None = None
    is_leaving = False
    stderr = 2
    """Standard error as it was: while an engine starts, its own log stands in its place."""


_watch = _Watch()


def install() -> None:
    """Make this process a program that signals stop: call it once, first of all, in the main thread."""
    if _watch.is_installed:
        return
    _watch.is_installed = True
    for number in SIGNALS:
        _signal.signal(number, _on_signal)
    reader, writer = _pipe()
    _watch.stderr = _copy(2)
    _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _thread.start_new_thread(_wait_for_the_second, (reader,))
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)


def first_signal() -> int:
    """The number of the signal that came, 0 where none did."""
    return _watch.first


def leave(number: int, last_words: str) -> NoReturn:
    """End the program with one last line, whichever thread is the first to say one, and 128 + the signal's number."""
    if _watch.is_leaving:
        time.sleep(1)
    else:
        _watch.is_leaving = True
        _say(last_words)
    os._exit(128 + number)


def abandon(last_words: str) -> NoReturn:
    """End the program at once, from any thread, where it cannot go on: one line, and exit code 1."""
    if not _watch.is_leaving:
        _watch.is_leaving = True
        _say(last_words)
    os._exit(1)


class react:  # noqa: N801 - read as a verb: `with react(…)`
    """While entered, `reaction(number)` is what the first signal does, called in the main thread.

    In a process that is not ours (`install` was not called) a second signal is a KeyboardInterrupt; in a thread other
    than the main one nothing is changed.
    """

    def __init__(self, reaction: Reaction) -> None:
        self._reaction, self._came = reaction, False
        self._before: Reaction | None = None
        self._borrowed: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if _watch.is_installed and _in_main_thread():
            self._before, _watch.reaction = _watch.reaction, self._reaction
        elif _in_main_thread():
            self._borrowed = {number: _signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if _watch.is_installed and _in_main_thread() and not _watch.first:
            _watch.reaction = self._before
        for number, handler in self._borrowed.items():
            _signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        self._reaction(number)


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    reaction = _watch.reaction
    if _watch.first or reaction is None:
        leave(number, "stopped at once" if _watch.first else "stopped")
    else:
        _watch.first = number
        reaction(number)


def _wait_for_the_second(reader: int) -> None:
    """Leave when a second signal comes, or a first one that nothing reacts to, whatever the main thread does."""
    num_seen = 0
    while True:
        if num_seen == 1 and not _comes(reader):
            _say("stopping; a second signal ends it at once")
        for number in os.read(reader, 64):
            num_seen += number in SIGNALS
            if number in SIGNALS and (num_seen > 1 or _watch.reaction is None):
                leave(number, "stopped at once" if num_seen > 1 else "stopped")


def _comes(reader: int) -> bool:
    import select

    return bool(select.select([reader], [], [], PATIENCE_S)[0])


def _say(text: str) -> None:
    shown_cursor = b"\r\x1b[K\x1b[?25h" if os.isatty(_watch.stderr) else b""  # a progress bar hides it
    try:
        os.write(_watch.stderr, shown_cursor + f"treegrpo: {text}\n".encode())
    except OSError:
        return


def _pipe() -> tuple[int, int]:
    """A pipe whose writer never waits, beside the standard streams even where those are closed."""
    ends = os.pipe()
    reader, writer = map(_copy, ends)
    for end in ends:
        os.close(end)
    os.set_blocking(writer, False)
    return reader, writer


def _copy(descriptor: int) -> int:
    """The same file under a number that no standard stream has; the same number where it is closed."""
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return descriptor


def _hold() -> None:
    """A signal waits while we fork, or the child would take it for ours."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)


def _let_go() -> None:
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, SIGNALS)


def _forget() -> None:
    """A forked child is not the program: it dies as any process does."""
    _signal.set_wakeup_fd(-1)
    if _watch.stderr != 2:
        os.close(_watch.stderr)
        _watch.stderr = 2
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    _let_go()
