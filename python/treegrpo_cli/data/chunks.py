"""Path -> the bytes of a file, a compressed one unpacked, within limits: all that is read comes through here."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from io import BufferedReader
from pathlib import Path
from typing import cast

import zstandard

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.types import Limits

CHUNK_BYTES = 2**18
COMPRESSED_CHUNK_BYTES = 2**11
"""zstd packs at most 32 kB into a byte, so that no chunk unpacks to more than 64 MB."""


class ContentError(FileError):
    """It is the content that cannot be read, not the file: a reader of lines knows where."""


def read_chunks(path: str | Path, limits: Limits) -> Iterator[bytes]:
    """Yield the content, unpacked where the name ends in `.zst`, in chunks that are not empty; `-` is standard input.

    Raises:
        FileError: a file that cannot be read, is damaged, or goes beyond a limit.
    """
    packed = str(path).endswith(".zst")
    size, spent_s, start = 0, 0.0, time.monotonic()
    with closing(_raw_chunks(path, COMPRESSED_CHUNK_BYTES if packed else CHUNK_BYTES, limits)) as raw:
        try:
            for chunk in _unpacked(raw) if packed else raw:
                size, spent_s = size + len(chunk), spent_s + time.monotonic() - start
                if size > limits.max_file_bytes:
                    raise ContentError(path, f"more bytes than limits.max_file_bytes = {limits.max_file_bytes}")
                if spent_s > limits.max_read_s:
                    raise ContentError(path, f"reading it takes more than limits.max_read_s = {limits.max_read_s:g}")
                yield chunk
                start = time.monotonic()
        except zstandard.ZstdError as error:
            raise ContentError(path, f"damaged zstd data: {error}") from None
        except EOFError as error:
            raise ContentError(path, str(error)) from None
        except OSError as error:
            raise FileError(path, said(error)) from None


def _raw_chunks(path: str | Path, size: int, limits: Limits) -> Generator[bytes, None, None]:
    if str(path) == "-":
        while chunk := cast(BufferedReader, sys.stdin.buffer).read1(size):
            yield chunk
        return
    if "\0" in str(path):
        raise FileError(path, "the name contains a NUL character")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is opened before there is a writer
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, not is_pipe)
        while True:
            if is_pipe:
                _wait(descriptor, path, limits)
            if not (chunk := os.read(descriptor, size)):
                return
            yield chunk
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: str | Path, limits: Limits) -> None:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    if not waiting.poll(1000 * limits.max_wait_s):
        raise ContentError(path, f"nothing came out of this pipe within limits.max_wait_s = {limits.max_wait_s:g}")


def _unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    frame = None
    for chunk in chunks:
        packed = chunk
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if unpacked := frame.decompress(packed):
                yield unpacked
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("half-written: the compressed data ends in the middle of a frame")
