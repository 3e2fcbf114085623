"""A vLLM server in a thread that lies when a test says so: a pure function of context, seed and weights otherwise."""

from __future__ import annotations

import hashlib
import json
import math
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKENS = list(range(40, 48))
Answer = dict[str, Any]
Fault = Callable[["Handler", Answer], bool]
"""Called with what would be answered: it may change that, or answer itself and return True."""


class LyingServer(ThreadingHTTPServer):
    """Faults are used up, one a turn; `routes` says which paths are there."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int = 0) -> None:
        self.faults: list[Fault] = []
        self.key, self.model, self.max_model_len = "", "tiny", 512
        self.has_generate = self.has_weight_routes = self.is_processed = True
        self.label, self.weights, self.is_paused = "default", "as started", False
        self.loaded: list[Path] = []
        self.restarts_behind_load = False
        self.asked: list[tuple[str, Any]] = []
        self.num_at_once = self.most_at_once = 0
        self.delay_s = 0.0
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        """Die: nobody answers any more, on connections that are open either. Twice is fine."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.thread.join()

    def turns(self) -> list[Any]:
        return [body for path, body in self.asked if path in ("/inference/v1/generate", "/v1/completions")]

    def turn(self, context: list[int], words: dict[str, Any]) -> tuple[list[int], list[float], list[dict[int, float]]]:
        """Draw a turn; the log-probabilities of each token and of the likeliest ones."""
        draw, tokens, logprobs, tops = random.Random(words["seed"]), [], [], []
        while len(tokens) < words["max_tokens"]:
            own = self.logprobs([*context, *tokens], 1.0)
            drawn = self.logprobs([*context, *tokens], words["temperature"] or 1.0, words["top_k"])
            weights = [math.exp(drawn.get(token, -math.inf)) for token in TOKENS]
            token = max(own, key=own.__getitem__) if not words["temperature"] else draw.choices(TOKENS, weights)[0]
            told = drawn if self.is_processed else own
            tokens.append(token)
            logprobs.append(told[token])
            tops.append({other: told[other] for other in sorted(drawn, key=drawn.__getitem__)[-words["logprobs"] :]})
        return tokens, logprobs, tops

    def logprobs(self, path: list[int], temperature: float, top_k: int = 0) -> dict[int, float]:
        key = hashlib.blake2b(repr((path, self.weights)).encode()).digest()
        logits = {token: key[place] / 40 / temperature for place, token in enumerate(TOKENS)}
        kept = sorted(logits, key=logits.__getitem__)[-top_k:] if top_k else TOKENS
        total = math.log(math.fsum(math.exp(logits[token]) for token in kept))
        return {token: logits[token] - total for token in kept}


class Handler(BaseHTTPRequestHandler):
    """One request after another on a connection."""

    server: LyingServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.answer(json.loads(self.rfile.read(length)) if length else None)

    def answer(self, body: Any) -> None:
        with suppress(OSError):  # who asked has gone, or we have died
            self._answer(body)

    def _answer(self, body: Any) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((path, body))
        if server.key and self.headers.get("authorization") != f"Bearer {server.key}" and path != "/health":
            self.reply({"error": {"message": "Unauthorized"}}, 401)
        elif path == "/health":
            self.reply(None)
        elif path == "/v1/models":
            self.reply({"data": [{"id": server.model, "max_model_len": server.max_model_len, "parent": None}]})
        elif path == "/inference/v1/generate" and not server.has_generate:
            self.reply({"error": {"message": "Scale-out endpoints are disabled."}}, 403)
        elif path in ("/inference/v1/generate", "/v1/completions"):
            self.sample(body)
        elif server.has_weight_routes:
            self.control(path, body)
        else:
            self.reply({"detail": "Not Found"}, 404)

    def sample(self, body: Any) -> None:
        server = self.server
        with server.lock:
            server.num_at_once += 1
            server.most_at_once = max(server.most_at_once, server.num_at_once)
        if server.delay_s:
            threading.Event().wait(server.delay_s)
        answer = _generated(server, body) if "token_ids" in body else _completed(server, body)
        fault = server.faults.pop(0) if server.faults else None
        with server.lock:
            server.num_at_once -= 1
        if fault is None or not fault(self, answer):
            self.reply(answer)

    def control(self, path: str, body: Any) -> None:
        server = self.server
        if path == "/reset_prefix_cache" and server.restarts_behind_load:
            server.restarts_behind_load, server.label, server.weights = False, "default", "as started"
            self.close_connection = True
            return None
        if path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            if not list(folder.glob("*.safetensors")):
                return self.reply({"error": {"message": "no such folder"}}, 500)
            server.loaded.append(folder)
            server.weights = folder.name.rpartition("-")[2]
        elif path == "/update_weight_version":
            server.label = body["new_version"]
        answers = {"/weight_info": {"weight_version": server.label}, "/reset_prefix_cache": {"success": True}}
        return self.reply(answers.get(path, {}))

    def reply(self, body: Any, status: int = 200, raw: bytes | None = None, **headers: str) -> None:
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


def _generated(server: LyingServer, body: Any) -> Answer:
    tokens, logprobs, tops = server.turn(body["token_ids"], body["sampling_params"])
    entries = [
        {
            "token_id": token,
            "logprob": logprob,
            "top_logprobs": [{"token_id": other, "logprob": value} for other, value in top.items()],
        }
        for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
    ]
    versions = [{"version": server.label, "start": 0, "end": len(tokens)}]
    choice = {"token_ids": tokens, "logprobs": {"content": entries}, "weight_versions": versions}
    return _answer(server, body["token_ids"], choice)


def _completed(server: LyingServer, body: Any) -> Answer:
    tokens, logprobs, tops = server.turn(body["prompt"], body)
    named = [{f"token_id:{token}": value for token, value in top.items()} for top in tops]
    choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs, "top_logprobs": named}, "text": "?"}
    return _answer(server, body["prompt"], choice)


def _answer(server: LyingServer, context: list[int], choice: dict[str, Any]) -> Answer:
    usage = {"prompt_tokens_details": {"cached_tokens": len(context) // 2}}
    ended = {"index": 0, "finish_reason": "length", "stop_reason": None}
    return {"model": server.model, "usage": usage, "choices": [{**ended, **choice}]}


@contextmanager
def lying(number: int = 1) -> Iterator[list[LyingServer]]:
    """So many servers, ended whatever happens."""
    servers = [LyingServer() for _ in range(number)]
    try:
        yield servers
    finally:
        for server in servers:
            server.end()
