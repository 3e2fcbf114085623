"""Path -> numbered lines of a plain file, a zstd-compressed one (across frames) or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import BufferedReader
from pathlib import Path
from typing import cast

import zstandard

from treegrpo_cli.errors import FileError

MAX_LINE_BYTES = 2**28
"""A longer line is refused rather than read: one tree of this size is a mistake."""

CHUNK_BYTES = 2**18
COMPRESSED_CHUNK_BYTES = 2**11
"""zstd packs at most 32 kB into a byte, so that no chunk unpacks to more than 64 MB."""


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of what is not blank; never holds more than a line and a chunk.

    Raises FileError, behind the whole lines in front of it, where the file cannot be read, a line is
    longer than `MAX_LINE_BYTES`, or compressed data is damaged or ends in the middle of a frame.
    """
    number, parts, size = 1, [b""], 0
    try:
        with _open(path) as stream:
            for chunk in _unpacked(stream) if str(path).endswith(".zst") else _chunks(stream, CHUNK_BYTES):
                *ends, rest = chunk.split(b"\n")
                for end in ends:
                    line = b"".join([*parts, end])
                    if line.strip():
                        yield number, line
                    number, parts, size = number + 1, [], 0
                parts.append(rest)
                size += len(rest)
                _check_head(path, number, parts, size)
    except zstandard.ZstdError as error:
        raise FileError(path, f"damaged zstd data: {error}", number) from None
    except EOFError as error:
        raise FileError(path, str(error), number) from None
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from None
    if b"".join(parts).strip():
        yield number, b"".join(parts)


def _open(path: str | Path) -> BufferedReader | nullcontext[BufferedReader]:
    return nullcontext(cast(BufferedReader, sys.stdin.buffer)) if str(path) == "-" else open(path, "rb")


def _chunks(stream: BufferedReader, size: int) -> Iterator[bytes]:
    while chunk := stream.read1(size):
        yield chunk


def _unpacked(stream: BufferedReader) -> Iterator[bytes]:
    frame = None
    for chunk in _chunks(stream, COMPRESSED_CHUNK_BYTES):
        packed = chunk
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("half-written: the compressed data ends in the middle of a frame")


def _check_head(path: str | Path, number: int, parts: list[bytes], size: int) -> None:
    """Give up early on what will never be a line of a tree file."""
    if size > MAX_LINE_BYTES:
        raise FileError(path, f"longer than {MAX_LINE_BYTES} bytes", number)
    if size > CHUNK_BYTES and not b"".join(parts[:2]).lstrip().startswith(b"{"):
        raise FileError(path, "not a line of a tree file: no JSON object", number)
