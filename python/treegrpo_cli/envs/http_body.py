"""HTTP response -> its bytes, within a limit that also holds behind its compression."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import httpx

ACCEPT_ENCODING = "gzip"
_GZIP = 16 + zlib.MAX_WBITS


async def read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Read a streamed response.

    Raises:
        ValueError: more than `max_bytes`, an encoding that was not asked for, or a broken one.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        parts = response.aiter_raw()
    elif encoding in ("gzip", "x-gzip"):
        parts = _decompressed(response.aiter_raw(), max_bytes)
    else:  # two of them in a row are one of these
        raise ValueError(f"the answer is encoded as {encoding!r:.40}, which was not asked for")
    body = bytearray()
    async for part in parts:
        body += part
        if len(body) > max_bytes:
            raise ValueError(f"the answer is longer than {max_bytes} bytes (max_response_bytes)")
    return bytes(body)


async def _decompressed(parts: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """Yield what one gzip stream holds, up to a byte more than the limit."""
    decompressor, left = zlib.decompressobj(_GZIP), max_bytes + 1
    async for part in parts:
        try:
            out = decompressor.decompress(part, left)
        except zlib.error as error:
            raise ValueError(f"the answer is no gzip ({error})") from None
        left -= len(out)
        yield out
        if decompressor.unused_data or not left:
            break
    if left and (decompressor.unused_data or not decompressor.eof):
        raise ValueError("the answer's gzip " + ("goes on behind its end" if decompressor.eof else "is cut short"))
