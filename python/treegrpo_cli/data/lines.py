"""Path -> numbered lines of a plain file, a zstd-compressed one (across frames) or standard input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from treegrpo_cli.data.chunks import CHUNK_BYTES, ContentError, read_chunks
from treegrpo_cli.errors import FileError
from treegrpo_cli.types import Limits

TEXT = re.compile(rb"\S")


def read_lines(path: str | Path, limits: Limits | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of what is not blank; never holds more than a line and a chunk.

    Raises FileError, behind the whole lines in front of it, where the file cannot be read, goes beyond a
    limit, or holds compressed data that is damaged or ends in the middle of a frame.
    """
    limits = limits or Limits()
    line = _Line(path, limits)
    try:
        for chunk in read_chunks(path, limits):
            end = chunk.find(b"\n")
            if end < 0:
                line.add(chunk)
                continue
            line.add(chunk[:end])
            yield from line.ended()
            last = chunk.rfind(b"\n") + 1
            for number, text in _whole_lines(chunk, end + 1, last, line.number):
                line.check_size(number, len(text))
                yield number, text
            line.number += chunk.count(b"\n", end + 1, last)
            line.check_number()
            line.add(chunk[last:])
    except ContentError as error:
        raise FileError(path, error.reason, line.number) from None
    yield from line.ended()


def _whole_lines(chunk: bytes, start: int, end: int, number: int) -> Iterator[tuple[int, bytes]]:
    """The lines between two line ends that are not blank; blank ones cost a byte's time and no object."""
    while found := TEXT.search(chunk, start, end):
        number += chunk.count(b"\n", start, found.start())
        start = chunk.rfind(b"\n", 0, found.start()) + 1
        stop = chunk.find(b"\n", start)
        yield number, chunk[start:stop]
        number, start = number + 1, stop + 1


class _Line:
    """The line that the chunks so far have begun; the blanks that it begins with are counted, not kept."""

    def __init__(self, path: str | Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.number = 1
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """Go on with the line, and give up early on what will never be one of ours."""
        self._size += len(part)
        if self._parts or TEXT.search(part):
            self._parts.append(part)
        self.check_size(self.number, self._size)
        if self._size > CHUNK_BYTES and self._parts and not self._parts[0].lstrip().startswith(b"{"):
            raise FileError(self.path, "not JSON Lines: this line is not a JSON object", self.number)

    def ended(self) -> Iterator[tuple[int, bytes]]:
        """The line, where it is not blank; the next one begins."""
        if self._parts:
            yield self.number, b"".join(self._parts)
        self.number, self._parts, self._size = self.number + 1, [], 0

    def check_size(self, number: int, size: int) -> None:
        """Refuse a line that is too long."""
        if size > self.limits.max_line_bytes:
            raise FileError(self.path, f"longer than limits.max_line_bytes = {self.limits.max_line_bytes}", number)

    def check_number(self) -> None:
        """Refuse a file of too many lines."""
        if self.number > self.limits.max_lines:
            raise FileError(self.path, f"more lines than limits.max_lines = {self.limits.max_lines}", self.number)
