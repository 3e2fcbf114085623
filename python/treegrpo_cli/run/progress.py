"""What a command says while it works: rich progress on a terminal, plain lines elsewhere, nothing under --quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

PLAIN_INTERVAL_S = 10.0
PLAIN_TABLE_WIDTH = 240
TELLING_SHARE = 0.1
"""Of pieces side by side, so many must be done before the others' time is estimated."""


def duration(seconds: float) -> str:
    """Return seconds as people say them, in one unit or two.

    >>> duration(44.6), duration(600), duration(3 * 3600 + 5 * 60), duration(30 * 3600)
    ('45 s', '10 min', '3 h 05 min', '1 d 6 h')
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class Work:
    """How fast work goes; pieces that were done before do not count.

    Of pieces that are worked on side by side the first one says nothing: many follow at its heels.
    """

    def __init__(self, total: int, done: int, *, side_by_side: bool) -> None:
        self.total, self.done = total, done
        self._start, self._first = time.monotonic(), done
        self._too_few = TELLING_SHARE * (total - done) if side_by_side else 0.0

    def time_left(self) -> str:
        """Return `about … left` from the mean time a piece took so far; nothing at the beginning and at the end."""
        worked, left = self.done - self._first, self.total - self.done
        if worked <= self._too_few or left <= 0:
            return ""
        return f"about {duration((time.monotonic() - self._start) / worked * left)} left"


class Bar:
    """Progress of one piece of work."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """So much more is done; `note` says how it stands."""


class RichBar(Bar):
    """A bar on a terminal, one of those that the terminal shows now."""

    def __init__(self, progress: Progress, label: str, work: Work) -> None:
        self._progress, self._work = progress, work
        self.task = progress.add_task(label, total=work.total, completed=work.done, note="", work=work)

    def advance(self, count: int = 1, note: str = "") -> None:
        self._work.done += count
        self._progress.update(self.task, advance=count, note=note)


class _TimeLeftColumn(ProgressColumn):
    """The same figure as in plain lines."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        return Text(task.fields["work"].time_left(), style="cyan")


class PlainBar(Bar):
    """A line now and then, and one at the end."""

    def __init__(self, console: Console, label: str, work: Work) -> None:
        self._console, self._label, self._work = console, label, work
        self._said = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        work = self._work
        work.done += count
        if work.done >= work.total or time.monotonic() - self._said > PLAIN_INTERVAL_S:
            self._said = time.monotonic()
            parts = [f"{self._label} {work.done}/{work.total}", note, work.time_left()]
            _print(self._console, "  ".join(part for part in parts if part))


class Reporter:
    """Where a command reports: results on standard output, progress on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._out, self._err = Console(emoji=False), Console(stderr=True, quiet=quiet, emoji=False)
        self._progress: Progress | None = None
        """What the terminal shows now."""

    def say(self, text: str) -> None:
        """Print a line on the way; nothing under --quiet."""
        _print(self._err, text)

    def show(self, picture: RenderableType) -> None:
        """Print something drawn, a table say, on the way; nothing under --quiet."""
        self._err.print(picture)

    def warn(self, text: str) -> None:
        """Print a line that nobody should miss, under --quiet too."""
        loud = Console(stderr=True, emoji=False) if self.quiet else self._err
        loud.print(f"treegrpo: warning: {text}", markup=False, highlight=False, soft_wrap=True)

    def result(self, text: str) -> None:
        """Print what the command was asked for."""
        _print(self._out, text)

    def table(self, table: RenderableType) -> None:
        """Print a table that the command was asked for: as wide as it needs to be, where no terminal sets its width."""
        out = self._out if self._out.is_terminal else Console(width=PLAIN_TABLE_WIDTH, emoji=False)
        out.print(table)

    @contextmanager
    def bar(self, label: str, total: int, *, done: int = 0, side_by_side: bool = False) -> Iterator[Bar]:
        """Show progress over `total` pieces, of which `done` were done by an earlier run; bars may nest."""
        work = Work(total, done, side_by_side=side_by_side)
        if self.quiet:
            yield Bar()
        elif self._err.is_terminal:
            outer = self._progress
            with self._shared_progress() as progress:
                bar = RichBar(progress, label, work)
                try:
                    yield bar
                finally:
                    if outer:
                        progress.remove_task(bar.task)
        else:
            yield PlainBar(self._err, label, work)

    @contextmanager
    def _shared_progress(self) -> Iterator[Progress]:
        """A terminal shows one live display at a time, so that a bar inside a bar is a line of the same."""
        if self._progress is not None:
            yield self._progress
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        note = TextColumn("{task.fields[note]}", markup=False)
        with Progress(*columns, _TimeLeftColumn(), note, console=self._err) as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
