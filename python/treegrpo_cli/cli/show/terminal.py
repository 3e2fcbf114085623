"""Styled lines -> standard output: as wide as it is, in colours where it has them, by a pager where they are many."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import TextIO

from rich.console import Console
from rich.text import Text

from treegrpo_cli.cli.show.pager import paged
from treegrpo_cli.errors import UserError

PLAIN_WIDTH = 80
MIN_WIDTH = 20
MAX_WIDTH = 999
COLORS = ("auto", "always", "never")


@dataclass(frozen=True, slots=True)
class Screen:
    """How lines are to be shown, where a person says so. Raises UserError for what cannot be."""

    width: int | None = None
    """Cells; None = as wide as the terminal, and 80 where there is none; `COLUMNS` says otherwise."""
    color: str = "auto"
    """`always`, `never`, or `auto`: in a terminal, unless the environment says otherwise."""
    pager: bool = True
    """Whether what is longer than the terminal goes through one."""

    def __post_init__(self) -> None:
        if self.width is not None and not MIN_WIDTH <= self.width <= MAX_WIDTH:
            raise UserError(f"--width {self.width}: expected {MIN_WIDTH} to {MAX_WIDTH}")
        if self.color not in COLORS:
            raise UserError(f"--color {self.color}: expected {', '.join(COLORS)}")

    def cells(self) -> int:
        """The width of its lines."""
        given = os.environ.get("COLUMNS", "")
        width = self.width or (int(given) if given.isdecimal() else 0) or _size()[0] or PLAIN_WIDTH
        return min(max(width, MIN_WIDTH), MAX_WIDTH)

    def has_colors(self) -> bool:
        """Whether lines are coloured: NO_COLOR and then FORCE_COLOR or CLICOLOR_FORCE decide where nobody else does."""
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if any(os.environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
            return True
        return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def show(lines_of: Callable[[int], Iterator[Text]], screen: Screen) -> None:
    """Show lines as they come, made for the width that they have: `lines_of(width)`.

    In a terminal that they do not fit into they go through a pager; they end where its reader leaves it.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign shows another
    width, has_colors = screen.cells(), screen.has_colors()
    lines = lines_of(width)
    num_rows = _size()[1] if screen.pager and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else 0
    first = list(islice(lines, num_rows))
    with paged(sys.stdout) if num_rows and len(first) == num_rows else nullcontext(sys.stdout) as stream:
        _write(chain(first, lines), stream, width, has_colors)


def _size() -> tuple[int, int]:
    """Columns and lines of the terminal, 0 where there is none or it does not say."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return 0, 0
    return size.columns, size.lines


class _Console(Console):
    """rich's console, which ends the program where its reader has left; here who opened the stream knows what to do."""

    def on_broken_pipe(self) -> None:
        """Let the error fly that is being handled."""
        raise


def _write(lines: Iterable[Text], stream: TextIO, width: int, has_colors: bool) -> None:
    system = _color_system() if has_colors else None
    console = _Console(
        file=stream,
        width=width,
        force_terminal=has_colors,
        no_color=not has_colors,
        color_system=system,  # type: ignore[arg-type]
        highlight=False,
        markup=False,
        emoji=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    for line in lines:
        line.rstrip()
        if has_colors:
            console.print(line, no_wrap=True, crop=False, overflow="ignore")
        else:
            stream.write(f"{line.plain}\n")


def _color_system() -> str:
    """What the terminal shows: all colours, 256 or 16."""
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "truecolor"
    return "256" if os.environ.get("TERM", "").endswith(("256color", "kitty", "direct")) else "standard"
