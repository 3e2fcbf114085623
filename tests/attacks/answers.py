"""A search server on loopback that answers as a broken or hostile one would; the path's number is the seed."""

from __future__ import annotations

import gzip
import random
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from tests.attacks.mutate import dump, mutated

DOCUMENTS = [{"document": {"contents": f"Lisbon {n}\nLisbon is a capital."}, "score": 1.5 / (n + 1)} for n in range(3)]
VALID = dump({"result": [DOCUMENTS]})
MANY = 1 << 20
CONTENT_TYPES = [
    "application/json",
    "text/html",
    "application/json; charset=zlib_codec",
    "application/json; charset=utf-16",
    "application/json; charset=\xff",
]


class Draws(Protocol):
    """Where the random draws of an input come from."""

    def draws(self, number: int) -> random.Random:
        """The random draws of one input."""
        ...


class AnsweringServer:
    """Serves until the process ends."""

    def __init__(self, bench: Draws) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(bench))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Serve in a thread of this process; a forked child that asks finds it there."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


def _handler(bench: Draws) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            draws = bench.draws(int(self.path.strip("/").partition("/")[0] or 0))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with suppress(OSError):  # the client has seen enough
                draws.choice(ANSWERS)(self, draws)
            self.close_connection = True

        do_GET = do_POST  # noqa: N815 - the name that the base class looks up

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _damaged(handler: BaseHTTPRequestHandler, draws: random.Random) -> None:
    _send(handler, mutated(VALID, draws), Content_Type=draws.choice(CONTENT_TYPES))


def _status(handler: BaseHTTPRequestHandler, draws: random.Random) -> None:
    _send(handler, VALID, status=draws.choice([201, 204, 301, 302, 400, 404, 429, 500, 503]), Location="/loop")


def _bomb(handler: BaseHTTPRequestHandler, draws: random.Random) -> None:
    body = gzip.compress(b" " * (200 * MANY))
    if draws.random() < 0.5:
        body, encoding = gzip.compress(body), "gzip, gzip"
    else:
        encoding = "gzip"
    _send(handler, body, Content_Encoding=encoding)


def _wrong_encoding(handler: BaseHTTPRequestHandler, draws: random.Random) -> None:
    encoding = draws.choice(["gzip", "deflate", "br", "zstd", "x", "gzip, deflate"])
    _send(handler, draws.choice([VALID, zlib.compress(VALID)[:-3], b""]), Content_Encoding=encoding)


def _endless(handler: BaseHTTPRequestHandler, draws: random.Random) -> None:
    del draws
    handler.send_response(200)
    handler.end_headers()
    for _ in range(2000):
        handler.wfile.write(b"[" * MANY)


def _short(handler: BaseHTTPRequestHandler, draws: random.Random) -> None:
    _send(handler, VALID[: draws.randrange(len(VALID))], Content_Length=str(len(VALID)))


ANSWERS: list[Callable[[BaseHTTPRequestHandler, random.Random], None]] = [
    *[_damaged] * 20,
    _status,
    _status,
    _wrong_encoding,
    _wrong_encoding,
    _short,
    _short,
    _bomb,
    _endless,
]
