"""Pieces of HTML for a notebook: a table, a number, text; no script, no style sheet, every foreign letter escaped.

Notebooks that nobody trusts yet, GitHub and editors take out scripts and style sheets: all that is here stands in
`style` attributes. A number's chip has its own background and letters, so that it reads on light and dark pages; sign
and arrow say what its colour does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from treegrpo_cli.trees.texts import number, plain, visible

MAX_TEXT = 600
"""Characters of a text that are shown, at most."""
MAX_LABEL = 90

ABOVE = (("#deebf7", "#000000"), ("#6baed6", "#000000"), ("#08519c", "#ffffff"))
BELOW = (("#feedde", "#000000"), ("#fd8d3c", "#000000"), ("#8c2d04", "#ffffff"))
NEITHER = ("#e0e0e0", "#000000")
"""Background and letters, from little to much; blue and orange differ for the colour-blind too."""

CELL = "text-align:left; vertical-align:top; padding:2px 8px; border-bottom:1px solid #808080"
DIGITS = "text-align:right; vertical-align:top; padding:2px 8px; border-bottom:1px solid #808080"


def text(foreign: object, limit: int = MAX_LABEL) -> str:
    """Foreign text on one line: no control characters, escaped, of a long one the two ends."""
    return escape(plain(str(foreign), limit // 2))


def passage(foreign: str) -> str:
    """Foreign text with its lines."""
    half = MAX_TEXT // 2
    shown = foreign if len(foreign) <= MAX_TEXT else f"{foreign[:half]} … {foreign[-half:]}"
    kept = "\n".join(map(visible, shown.split("\n")))
    return f'<div style="white-space:pre-wrap; overflow-wrap:anywhere">{escape(kept)}</div>'


def chip(value: float | None, largest: float) -> str:
    """A number with its sign in arrow, digits and colour; `largest` is the absolute value of the strongest colour."""
    if value is None:
        return "·"
    shade, letters = _shade(value, largest)
    arrow = "▲ +" if value > 0 else "▼ " if value < 0 else ""
    style = f"background-color:{shade}; color:{letters}; padding:0 4px; border-radius:3px; white-space:nowrap"
    return f'<span style="{style}">{arrow}{number(value)}</span>'


def _shade(value: float, largest: float) -> tuple[str, str]:
    if not value:
        return NEITHER
    shades = ABOVE if value > 0 else BELOW
    return shades[min(int(3 * abs(value) / largest), 2)]


def details(summary: str, below: Sequence[str]) -> str:
    """Escaped text that opens to more of it."""
    if not below:
        return summary
    return f"<details><summary>{summary}</summary>{''.join(below)}</details>"


def table(title: Sequence[str], headers: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]) -> str:
    """Title lines, a table, notes below it, all escaped; a header that ends in `:` is of text, the others of digits."""
    styles = [CELL if header.endswith(":") else DIGITS for header in headers]
    head = _row("th", styles, [header.rstrip(":") for header in headers])
    body = "".join(_row("td", styles, row) for row in rows)
    below = "".join(f"<div>{note}</div>" for note in notes)
    return (
        f'<div style="overflow-x:auto">{"".join(f"<div>{line}</div>" for line in title)}'
        f'<table style="border-collapse:collapse"><thead>{head}</thead><tbody>{body}</tbody></table>{below}</div>'
    )


def _row(tag: str, styles: Sequence[str], cells: Sequence[str]) -> str:
    inside = "".join(f'<{tag} style="{style}">{cell}</{tag}>' for style, cell in zip(styles, cells, strict=True))
    return f"<tr>{inside}</tr>"
