"""What a command says while it works: rich progress on a terminal, plain lines elsewhere, nothing under --quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S = 10.0


class Bar:
    """Progress of one piece of work."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """So much more is done; `note` says how it stands."""


class RichBar(Bar):
    """A bar on a terminal."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress, self._task = progress, progress.add_task(label, total=total, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=count, note=note)


class PlainBar(Bar):
    """A line now and then, and one at the end."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console, self._label, self._total, self._done = console, label, total, 0
        self._said = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        if self._done >= self._total or time.monotonic() - self._said > PLAIN_INTERVAL_S:
            self._said = time.monotonic()
            text = f"{self._label} {self._done}/{self._total}  {note}".rstrip()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Reporter:
    """Where a command reports: results on standard output, progress on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._out, self._err = Console(), Console(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        """Print a line on the way; nothing under --quiet."""
        self._err.print(text, markup=False, highlight=False, soft_wrap=True)

    def result(self, text: str) -> None:
        """Print what the command was asked for."""
        self._out.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """Show progress over `total` pieces."""
        if self.quiet:
            yield Bar()
        elif self._err.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            note = TextColumn("{task.fields[note]}", markup=False)
            with Progress(*columns, TimeRemainingColumn(), note, console=self._err) as progress:
                yield RichBar(progress, label, total)
        else:
            yield PlainBar(self._err, label, total)
