"""Foreign text and numbers -> what fits into cells of a terminal: no control characters, cut or wrapped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def plain(text: str, limit: int = 2000) -> str:
    """Text on one line without control characters; of a very long one the two ends only.

    >>> plain("a\\x1b[31mb\\n\\tc\\u202ed")
    'ab cd'
    """
    text = text if len(text) <= 2 * limit else f"{text[:limit]} … {text[-limit:]}"
    text = " ".join(ESCAPES.sub("", text).split())
    return "".join(c for c in text if not unicodedata.category(c).startswith("C"))


def shorten(text: str, space: int, tail: float = 0.0) -> str:
    """Cut `text` to `space` cells; `tail` is the share of them that goes to its end.

    >>> shorten("<think>so</think><answer>Chad</answer>", 24, tail=0.75)
    '<think…wer>Chad</answer>'
    """
    if cell_len(text) <= space:
        return text
    end = int(max(space - 1, 0) * tail)
    head = set_cell_size(text, max(space - 1 - end, 0)).rstrip()
    return f"{head}…{_last_cells(text, end)}"


def _last_cells(text: str, space: int) -> str:
    start, used = len(text), 0
    while start and used + cell_len(text[start - 1]) <= space:
        start -= 1
        used += cell_len(text[start])
    return text[start:]


def wrapped(text: str, space: int) -> Iterator[str]:
    """The text's lines, without control characters, each in pieces of at most `space` cells, cut at blanks.

    >>> list(wrapped("one two three\\n  four", 8))
    ['one two', 'three', '  four']
    """
    for line in ESCAPES.sub("", text).splitlines():
        shown = "".join(c for c in line.expandtabs(4) if not unicodedata.category(c).startswith("C"))
        start = 0
        while start < len(shown) or start == 0:
            end = _fitting(shown, start, space)
            blank = shown.rfind(" ", start + 1, end + 1)
            cut = end if end == len(shown) or blank < 0 or not shown[start:blank].strip() else blank
            yield shown[start:cut].rstrip()
            start = cut + (shown[cut : cut + 1] == " ") if cut else 1


def _fitting(text: str, start: int, space: int) -> int:
    """Behind the last character that fits into `space` cells from `start` on; one at least."""
    end, used = start, 0
    while end < len(text) and (used := used + cell_len(text[end])) <= space:
        end += 1
    return max(end, min(start + 1, len(text)))


def number(value: float | None) -> str:
    """Three decimals, or an exponent where they would hide the number; "·" where there is none.

    >>> number(0.5), number(-0.0), number(1e-7), number(None)
    ('0.500', '0.000', '1e-07', '·')
    """
    if value is None:
        return "·"
    if value == 0:
        return "0.000"
    if 5e-4 <= abs(value) < 1e5:
        return f"{value:.3f}"
    return f"{value:.0e}"


def count(number_of: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> count(1, "leaf", "leaves"), count(1200, "node")
    ('1 leaf', '1,200 nodes')
    """
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"
