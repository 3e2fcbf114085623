"""RUN -> a run that is followed on the terminal until it ends, or one summary of it: what `treegrpo watch` does."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from treegrpo_cli.cli.plot import writes_blocks
from treegrpo_cli.errors import FileError
from treegrpo_cli.plots.dashboard import Dashboard, facts
from treegrpo_cli.plots.follow import Follower, State
from treegrpo_cli.signals import react

POLL_S, KEY_S = 1.0, 0.1
PLAIN_WIDTH = 100
QUIT = b"qQ\x03\x1b"
RESUME_S = 10.0
"""A run that stopped may be starting again: so long after it is first looked at it may still take its lock."""


def run_watch(folder: Path, *, once: bool) -> None:
    """Follow a run; where `once` is asked for, or the output is no terminal, say how it is and return.

    Raises FileError where it cannot be read, or, without a terminal, is not there.
    """
    console, follower = Console(emoji=False, highlight=False), Follower(folder)
    if folder.exists() and not folder.is_dir():
        raise FileError(folder, "is no run: it is a file")
    follower.look()
    if once or not console.is_terminal:
        if follower.state is State.WAITING:
            raise FileError(folder, "holds no run yet")
        summarise(follower, console)
        return
    if follower.state is not State.FINISHED:
        follow(follower, console)
    summarise(follower, console)


def summarise(follower: Follower, console: Console) -> None:
    """Print what is known in a few lines."""
    width = console.width if console.is_terminal else PLAIN_WIDTH
    for text in facts(follower, width, ascii_only=not writes_blocks(console)):
        console.print(text, soft_wrap=True)
    if follower.state is State.STOPPED:
        console.print(Text("--resume goes on from its last checkpoint"), soft_wrap=True)


def follow(follower: Follower, console: Console) -> None:
    """Draw the run until it is over, or the user has seen enough: q, Ctrl-C or a signal; the terminal is as before."""
    dashboard = Dashboard(follower, ascii_only=not writes_blocks(console))
    came: list[int] = []
    with react(came.append), keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        looked, size, until = 0.0, (0, 0), time.monotonic() + RESUME_S
        while not came and may_go_on(follower.state, until):
            is_due = time.monotonic() - looked >= POLL_S
            if is_due:
                follower.look()
                looked = time.monotonic()
            if is_due or size != console.size:
                size = console.size
                live.update(screen_of(dashboard, *size), refresh=True)
            if pressed(KEY_S):
                break


def screen_of(dashboard: Dashboard, width: int, height: int) -> Group:
    """The rows of a screen, and its last one, which says how to leave."""
    rows = dashboard.rows(width, max(height - 1, 1))
    state = dashboard.follower.state
    foot = "waiting for a --resume; q leaves" if state.is_over else "q leaves; the run goes on"
    foot = "waiting for the run; q leaves" if state is State.WAITING else foot
    blank = [Text("")] * (height - 1 - len(rows))
    return Group(*rows, *blank, Text(foot[:width], style="dim", end=""))


def may_go_on(state: State, until: float) -> bool:
    """Whether more may come; of a run that stopped before its end `until` then, in case it is resumed just now."""
    return not state.is_over or (state is not State.FINISHED and time.monotonic() < until)


@contextmanager
def keys() -> Iterator[KeyPressed]:
    """While entered, keys are read one by one and not shown; what is not read from a terminal has none."""
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield KeyPressed(None)
        return
    changed = termios.tcgetattr(descriptor)
    changed[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)  # Ctrl-C is a key, so that it cannot come in between
    termios.tcsetattr(descriptor, termios.TCSADRAIN, changed)
    try:
        yield KeyPressed(descriptor)
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class KeyPressed:
    """Waits for a key that leaves."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def __call__(self, seconds: float) -> bool:
        """Whether one was pressed within so many seconds, or nobody is there any more."""
        if self._descriptor is None:
            time.sleep(seconds)
            return False
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return False
        try:
            found = os.read(self._descriptor, 64)
        except OSError:
            return True
        return not found or (len(found) == 1 and found in QUIT)
