"""URL + bytes -> bytes: one pooled client in an event loop of its own, whichever loop asks.

So connections are kept from call to call and from run to run, and an answer is read and unpacked while an engine's
step blocks the loop that asked. The environment's proxy settings are not used.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import weakref

import httpx

from treegrpo_cli.envs.http_body import ACCEPT_ENCODING, read_body
from treegrpo_cli.errors import ToolError, UserCodeError
from treegrpo_cli.user_code.threads import LoopThread

HEADERS = {"Content-Type": "application/json", "Accept-Encoding": ACCEPT_ENCODING}
MAX_SHOWN_BYTES = 1000
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""How a kept connection fails that the server has closed meanwhile."""


class HTTPClient:
    """Posts to one address; errors name it without user, password and query."""

    def __init__(self, url: httpx.URL, max_response_bytes: int) -> None:
        self.url, self.max_response_bytes = url, max_response_bytes
        self.name = f"{url.scheme}://{url.netloc.rpartition(b'@')[2].decode()}{url.path}"
        self._verify: ssl.SSLContext | bool = httpx.create_ssl_context() if url.scheme == "https" else False
        self._open: _Open | None = None

    async def post(self, body: bytes) -> bytes:
        """Return the answer's body. Who asks sets the time limit.

        Raises:
            ToolError: nobody answers, or with an error, too much, or in an encoding that was not asked for.
        """
        if self._open is None or self._open.pid != os.getpid():  # a fork has none of its parent's threads
            self._open = _Open(self._verify)
            weakref.finalize(self, self._open.end).atexit = False
        running = self._open.thread.start(lambda: self._post(body))
        try:
            return await asyncio.wrap_future(running.answer)
        except asyncio.CancelledError:
            running.cancel()
            raise
        except UserCodeError as error:  # what _post raised, as it was
            raise error.__cause__ or error from None

    async def _post(self, body: bytes) -> bytes:
        try:
            try:
                return await self._ask(body)
            except _STALE:  # asking is safe to repeat
                return await self._ask(body)
        except httpx.HTTPError as error:
            raise ToolError(f"{self.name}: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ToolError(f"{self.name}: {error}") from error

    async def _ask(self, body: bytes) -> bytes:
        assert self._open is not None
        client = self._open.client
        async with client.stream("POST", self.url, content=body, headers=HEADERS) as response:
            if response.status_code == 200:
                return await read_body(response, self.max_response_bytes)
            shown = b""
            async for part in response.aiter_raw():
                shown += part[:MAX_SHOWN_BYTES]
                if len(shown) >= MAX_SHOWN_BYTES:
                    break
            raise ValueError(f"HTTP {response.status_code}: {shown[:100].decode(errors='replace')!r}")

    def close(self) -> None:
        """Close the connections; a call later opens new ones."""
        if self._open is not None:
            self._open.end()
            self._open = None


class _Open:
    """A client and the thread that it lives in."""

    def __init__(self, verify: ssl.SSLContext | bool) -> None:
        self.thread = LoopThread()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.AsyncClient(verify=verify, timeout=None, trust_env=False, limits=limits)  # noqa: S113
        self.pid, self._ended = os.getpid(), False

    def end(self) -> None:
        """Close the client and end the thread; nobody waits for it."""
        if not self._ended and self.pid == os.getpid():
            self._ended = True
            self.thread.start(self.client.aclose)
            self.thread.leave()
