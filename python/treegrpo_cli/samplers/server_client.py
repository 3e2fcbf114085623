"""A path at one server, JSON -> what it answers, JSON: retries, limits, and one line where it fails.

An answer is bounded in bytes and in seconds, whatever the server does. No line repeats a password or the API key.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson

from treegrpo_cli.errors import UserError, bounded, said
from treegrpo_cli.samplers.replicas import ReplicaGoneError

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig

PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""Before the first retry, and before any; each is twice the last, and by chance up to half as much more."""
CONNECT_S = 10.0
MAX_BYTES = 8 << 20
"""Of an answer that is no turn: a list of models, a server's state."""
MAX_SHOWN = 200
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Who answers so may answer otherwise a little later."""


class RefusedError(UserError):
    """The server answers with a status that no retry mends; `status` is its number."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class FailedError(ReplicaGoneError):
    """The server answered, each time, that it failed: `status` is its number."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class ServerClient:
    """Asks one server; belongs to one event loop, and is closed in it. `name` is its address without secrets."""

    def __init__(self, url: str, config: SamplerConfig) -> None:
        self.name = nameable(url)
        self.timeout_s, self._retries = config.request_timeout_s, config.request_retries
        self._url, self._key_name = url, config.api_key_env
        self._key = read_key(config.api_key_env)
        self._draw = random.Random(self.name)  # noqa: S311 - when to ask again is no secret
        self._http: httpx.AsyncClient | None = None
        self._max_connections = config.max_num_seqs

    async def get(self, path: str, **limits: Any) -> Any:
        """Ask by GET."""
        return await self.ask("GET", path, None, **limits)

    async def post(self, path: str, body: Any = None, **limits: Any) -> Any:
        """Ask by POST."""
        return await self.ask("POST", path, body, **limits)

    async def ask(
        self, method: str, path: str, body: Any, *, max_bytes: int = MAX_BYTES, retries: int | None = None
    ) -> Any:
        """Return the answer's JSON, None where its body is empty.

        Raises:
            RefusedError: an answer that says no, for good.
            UserError: an answer that is none: longer than `max_bytes`, not JSON, a redirection; a certificate that
                is not trusted.
            ReplicaGoneError: nobody answers, whole and in time, after `retries` more tries.
        """
        content = None if body is None else orjson.dumps(body)
        left = self._retries if retries is None else retries
        pause_s = PAUSE_S
        while True:
            try:
                async with asyncio.timeout(self.timeout_s):
                    return await self._try(method, path, content, max_bytes)
            except TimeoutError:
                raise ReplicaGoneError(f"no answer to {path} within {self.timeout_s:g} s") from None
            except (httpx.HTTPError, FailedError) as error:
                if distrusts(error):
                    raise UserError(
                        f"{self.name}: {self._told(error)}; where you trust its authority, let SSL_CERT_FILE name it"
                    ) from error
                if not left:
                    raise error if isinstance(error, FailedError) else ReplicaGoneError(self._told(error)) from error
            left -= 1
            await asyncio.sleep(min(pause_s, MAX_PAUSE_S) * self._draw.uniform(1.0, 1.5))
            pause_s *= 2

    async def close(self) -> None:
        """Close its connections."""
        if self._http is not None:
            await self._http.aclose()

    async def _try(self, method: str, path: str, content: bytes | None, max_bytes: int) -> Any:
        client = self._open()
        async with client.stream(method, f"{self._url}{path}", content=content) as response:
            if response.status_code == 200:
                return self._parsed(path, await self._read(response, path, max_bytes))
            raise await self._refusal(response, path)

    def _open(self) -> httpx.AsyncClient:
        """Return the client, opened in the loop that asks first; the environment's proxies are not used."""
        if self._http is None:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._max_connections)
            timeout = httpx.Timeout(None, connect=min(CONNECT_S, self.timeout_s))
            self._http = httpx.AsyncClient(
                headers=headers,
                limits=limits,
                timeout=timeout,
                trust_env=False,
                follow_redirects=False,
                verify=httpx.create_ssl_context() if self._url.startswith("https:") else False,
            )
        return self._http

    async def _read(self, response: httpx.Response, path: str, max_bytes: int) -> bytes:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding not in ("", "identity"):
            raise self.wrong(path, f"it is encoded as {encoding!r:.40}, which was not asked for")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > max_bytes:
                raise self.wrong(path, f"it is longer than {max_bytes} bytes")
        return bytes(body)

    def _parsed(self, path: str, body: bytes) -> Any:
        try:
            return orjson.loads(body) if body else None
        except orjson.JSONDecodeError as error:
            shown = self._without_key(body[:60].decode(errors="replace"))
            raise self.wrong(path, f"it is no JSON ({said(error)}): {shown!r}") from None

    async def _refusal(self, response: httpx.Response, path: str) -> Exception:
        """What a status that is not 200 raises."""
        status = response.status_code
        if 300 <= status < 400:
            to = nameable(response.headers.get("location", ""))
            return RefusedError(f"{self.name}{path}: redirects to {to!r:.200}; name that address", status)
        shown = self._without_key(await _beginning(response))
        line = f"HTTP {status}{shown and ': '}{shown}"
        if status in BUSY:
            return FailedError(f"{path}: {line}", status)
        if status in (401, 403):
            sent = "the key in it was sent" if self._key else "it is not set here"
            line += f" (${self._key_name} holds the API key: {sent})"
        return RefusedError(f"{self.name}{path}: {line}", status)

    def wrong(self, path: str, problem: str) -> UserError:
        """The error of an answer that cannot be used."""
        return UserError(f"{self.name}{path}: the answer cannot be used: {problem}")

    def _told(self, error: Exception) -> str:
        return bounded(f"{type(error).__name__}: {self._without_key(said(error))}", MAX_SHOWN)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


async def _beginning(response: httpx.Response) -> str:
    """What an error's body begins with, on one line: vLLM's own message where it is one."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_BYTES:
            break
    try:
        message = orjson.loads(bytes(body))["error"]["message"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        message = bytes(body[: 4 * MAX_SHOWN]).decode(errors="replace")
    return bounded(" ".join(str(message).split()), MAX_SHOWN)


def distrusts(error: BaseException | None) -> bool:
    """Whether the server's certificate is what is wrong, which no retry mends."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def refused_by(error: BaseException, statuses: Collection[int]) -> bool:
    """Whether a server said no by one of these."""
    return isinstance(error, (RefusedError, FailedError)) and error.status in statuses


def nameable(url: str) -> str:
    """An address without user, password and query.

    >>> nameable("http://me:secret@host:8000/there?key=1")
    'http://host:8000/there'
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_key(name: str) -> str:
    """Return the API key in an environment variable, "" where it is not set.

    Raises UserError, which does not repeat it, where no header can hold it.
    """
    key = os.environ.get(name, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise UserError(f"${name}: an API key is of ASCII letters, digits and signs, and holds no blank")
    return key
