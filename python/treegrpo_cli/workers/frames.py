"""Messages <-> a stream of bytes: each has its length in front."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from treegrpo_cli.workers.plain import from_bytes, to_bytes

HEAD = struct.Struct(">Q")


def frame(message: dict[str, Any]) -> bytes:
    """Return a message as bytes. Raises NotPlainError."""
    body = to_bytes(message)
    return HEAD.pack(len(body)) + body


class Unframer:
    """Collects what arrives.

    >>> unframer = Unframer()
    >>> sent = frame({"id": 1}) + frame({"id": 2})
    >>> list(unframer.messages(sent[:-3])), list(unframer.messages(sent[-3:]))
    ([{'id': 1}], [{'id': 2}])
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def messages(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that are whole by now."""
        self._buffer += data
        while len(self._buffer) >= HEAD.size:
            end = HEAD.size + HEAD.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = self._buffer[HEAD.size : end]
            del self._buffer[:end]
            yield from_bytes(body)
