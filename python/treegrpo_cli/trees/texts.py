"""Foreign text and numbers -> what fits into cells of a terminal: control characters shown, cut or wrapped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

JOINERS = frozenset(
    {0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0x3164, 0xFEFF}
    | {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x1F3FB, 0x1F400)}
)
"""They change what stands beside them, and terminals differ in how wide that becomes: left out."""


class _Shown(dict[int, str]):
    """What is shown for a character, by its number."""

    def __missing__(self, code: int) -> str:
        if code in JOINERS:
            shown = ""
        elif code < 0x20 or code == 0x7F:
            shown = chr(0x2400 + code if code < 0x20 else 0x2421)
        else:
            char = chr(code)
            shown = f"<U+{code:04X}>" if unicodedata.category(char) in HIDDEN else char
        self[code] = shown
        return shown


HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_shown = _Shown()


def visible(text: str) -> str:
    """The text with signs in place of what a terminal would obey or hide; nothing of it changes the terminal.

    >>> visible("\\x1b[31mred\\u202e"), visible("\U0001f469\\u200d\U0001f467")
    ('␛[31mred<U+202E>', '👩👧')
    """
    return text.translate(_shown)


def plain(text: str, limit: int = 2000) -> str:
    """Text on one line, its control characters shown; of a very long one the two ends only.

    >>> plain("a\\x1b[31mb\\n\\tc\\u202ed")
    'a␛[31mb c<U+202E>d'
    """
    text = text if len(text) <= 2 * limit else f"{text[:limit]} … {text[-limit:]}"
    return visible(" ".join(text.split()))


def shorten(text: str, space: int, tail: float = 0.0) -> str:
    """Cut `text` to `space` cells; `tail` is the share of them that goes to its end.

    >>> shorten("<think>so</think><answer>Chad</answer>", 24, tail=0.75)
    '<think…wer>Chad</answer>'
    """
    if cell_len(text) <= space:
        return text
    if space < 1:
        return ""
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
    """The text's lines, their control characters shown, each in pieces of at most `space` cells, cut at blanks.

    >>> list(wrapped("one two three\\n  four", 8))
    ['one two', 'three', '  four']
    """
    for line in text.splitlines():
        shown = visible(line.expandtabs(4))
        start = 0
        while start < len(shown) or start == 0:
            end = _fitting(shown, start, space)
            blank = shown.rfind(" ", start + 1, end + 1)
            cut = end if end == len(shown) or blank < 0 or not shown[start:blank].strip() else blank
            yield shown[start:cut].rstrip()
            start = cut + (shown[cut : cut + 1] == " ") if cut else 1


def hanging(line: str, space: int) -> Iterator[str]:
    """One line in pieces of at most `space` cells, the later ones up to four cells further in than the first.

    >>> list(hanging("  one two three", 9))
    ['  one two', '    three']
    """
    indent = len(line) - len(line.lstrip())
    first, *others = list(wrapped(line, space)) or [""]
    yield first
    behind = " ".join(piece.strip() for piece in others)
    margin = " " * min(indent + 4, space // 2)
    yield from (margin + piece for piece in wrapped(behind, space - len(margin)) if behind)


def _fitting(text: str, start: int, space: int) -> int:
    """Behind the last character that fits into `space` cells from `start` on; one at least."""
    end, used = start, 0
    while end < len(text) and (used := used + cell_len(text[end])) <= space:
        end += 1
    return max(end, min(start + 1, len(text)))


def folded(parts: Sequence[str], space: int, between: str = " · ") -> Iterator[str]:
    """The parts, as many on a line as fit into `space` cells; one that does not is wrapped.

    >>> list(folded(["4 nodes", "2 leaves", "mean reward 0.5"], 20))
    ['4 nodes · 2 leaves', 'mean reward 0.5']
    """
    line = ""
    for part in parts:
        joined = f"{line}{between}{part}" if line else part
        if line and cell_len(joined) > space:
            yield from hanging(line, space)
            joined = part
        line = joined
    yield from hanging(line, space)


def signed(value: float | None) -> str:
    """A number with its sign, a plus as well.

    >>> signed(0.5), signed(-0.5), signed(0.0), signed(None)
    ('+0.500', '-0.500', '0.000', '·')
    """
    return ("+" if value is not None and value > 0 else "") + number(value)


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
