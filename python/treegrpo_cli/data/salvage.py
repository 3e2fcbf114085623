"""Damaged file of lines -> every line that is still whole, and the bytes that are not, by their places.

A plain file is read on behind a damage from the next line, a zstd-compressed one from the next frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from treegrpo_cli.data.chunks import CHUNK_BYTES, COMPRESSED_CHUNK_BYTES
from treegrpo_cli.errors import FileError, said
from treegrpo_cli.types import Limits

MAGIC = bytes.fromhex("28b52ffd")
"""What every zstd frame begins with."""


@dataclass(frozen=True, slots=True)
class Found:
    """A line, without its end, and the bytes of the file that hold it: itself, or the frame around it.

    `line` is None where those bytes hold no whole line. `is_clean` is false where the file cannot go on behind it:
    it lacks its line end, or is a part of a frame that was not finished.
    """

    start: int
    end: int
    line: bytes | None
    is_clean: bool = True


def find_lines(path: Path, limits: Limits) -> Iterator[Found]:
    """Yield all that is in a file, in its order; blank lines are left out.

    Raises:
        FileError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            yield from (_in_frames if path.suffix == ".zst" else _in_text)(file, limits.max_line_bytes)
    except OSError as error:
        raise FileError(path, said(error)) from None


def move_aside(path: Path, places: Iterable[tuple[int, int]]) -> Path | None:
    """Copy these bytes of a file to a new `NAME.damaged-N` beside it and return that; None where there are none."""
    merged = sorted(set(places))
    if not merged:
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        with open(path, "rb") as file, open(aside, "xb") as damaged:
            for start, end in merged:
                file.seek(start)
                while start < end and (chunk := file.read(min(CHUNK_BYTES, end - start))):
                    start += damaged.write(chunk)
            damaged.flush()
            os.fsync(damaged.fileno())
    except OSError as error:
        raise FileError(aside, said(error)) from None
    return aside


def _in_text(file: BinaryIO, max_line_bytes: int) -> Iterator[Found]:
    start = 0
    while line := file.readline(max_line_bytes + 1):
        end, has_end, is_long = start + len(line), line.endswith(b"\n"), len(line) > max_line_bytes
        while is_long and not has_end and (more := file.readline(CHUNK_BYTES)):
            end, has_end = end + len(more), more.endswith(b"\n")
        if line.strip():
            yield Found(start, end, None if is_long else line.rstrip(b"\n"), has_end)
        start = end


def _in_frames(file: BinaryIO, max_line_bytes: int) -> Iterator[Found]:
    """Lines may go on from one whole frame to the next, as other programs write them."""
    start, rest, rest_start = 0, b"", 0
    size = file.seek(0, os.SEEK_END)
    while start < size:
        end, is_whole, is_readable = _frame_end(file, start, size)
        rest_start = rest_start if rest else start
        for text in _texts(file, start, end) if is_readable else ():
            *lines, rest = (rest + text).split(b"\n")
            for line in filter(bytes.strip, lines):
                yield Found(rest_start, end, line if len(line) <= max_line_bytes else None, is_whole)
            rest_start = start if lines else rest_start
            rest = rest[: max_line_bytes + 1]
        if not is_whole:
            yield Found(rest_start, end, None, False)
            rest = b""
        start = end
    if rest.strip():
        yield Found(rest_start, size, rest, False)


def _frame_end(file: BinaryIO, start: int, size: int) -> tuple[int, bool, bool]:
    """Where a frame ends, whether it is whole, and whether what can be unpacked of it is what was written.

    A damaged frame ends where the next begins. One whose checksum is wrong may be wrong anywhere.
    """
    frame, is_damaged = zstandard.ZstdDecompressor().decompressobj(), False
    file.seek(start)
    try:
        while not frame.eof and (chunk := file.read(COMPRESSED_CHUNK_BYTES)):
            frame.decompress(chunk)
    except zstandard.ZstdError:
        is_damaged = True
    if frame.eof:
        return file.tell() - len(frame.unused_data), True, True
    return _next_magic(file, start + 1, size), False, not (is_damaged and _has_checksum(file, start))


def _has_checksum(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    try:
        return zstandard.get_frame_parameters(file.read(32)).has_checksum
    except zstandard.ZstdError:
        return False


def _next_magic(file: BinaryIO, start: int, size: int) -> int:
    tail = b""
    file.seek(start)
    while chunk := file.read(CHUNK_BYTES):
        place = (tail + chunk).find(MAGIC)
        if place >= 0:
            return file.tell() - len(tail) - len(chunk) + place
        tail = chunk[-len(MAGIC) + 1 :]
    return size


def _texts(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """What can be unpacked of a frame, up to its damage."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    while start < end and not frame.eof:
        file.seek(start)
        chunk = file.read(min(COMPRESSED_CHUNK_BYTES, end - start))
        start += len(chunk)
        try:
            yield frame.decompress(chunk)
        except zstandard.ZstdError:
            return
