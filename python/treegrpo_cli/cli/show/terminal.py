"""Styled lines -> standard output, as wide as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

PLAIN_WIDTH = 80
MIN_WIDTH = 60


def console_of() -> Console:
    """A console as wide as the terminal, or 80 columns where there is none; `COLUMNS` says otherwise."""
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and int(given) else None if sys.stdout.isatty() else PLAIN_WIDTH
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign shows another
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    return Console(width=max(console.width, MIN_WIDTH), highlight=False, markup=False, emoji=False)


def print_lines(console: Console, lines: Iterator[Text]) -> None:
    """Print each line as it comes, as plain text where the console has no colours."""
    for line in lines:
        line.rstrip()
        if console.color_system is None:
            console.file.write(f"{line.plain}\n")
        else:
            console.print(line, no_wrap=True, crop=False, overflow="ignore")
