"""Corpus file -> a retriever over HTTP: `python -m treegrpo_cli.envs.retrieval --corpus FILE`.

It answers Search-R1's protocol (see `http_retriever`) at `/retrieve`, by default to this machine alone.
"""

from __future__ import annotations

import argparse
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from treegrpo_cli.envs.bm25 import BM25Retriever
from treegrpo_cli.errors import UserError

MAX_BODY_BYTES = 16 * 2**20
REQUEST_TIMEOUT_S = 30


class RetrievalServer(ThreadingHTTPServer):
    """Answers each request in a thread of its own; `port` 0 takes a free one (`server_port` says which)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, retriever: BM25Retriever, host: str = "127.0.0.1", port: int = 0, topk: int = 3) -> None:
        self.retriever, self.topk = retriever, topk
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: RetrievalServer
    timeout = REQUEST_TIMEOUT_S
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer leaves in one piece

    def do_POST(self) -> None:
        if self.path != "/retrieve":
            self._send(404, {"error": "POST to /retrieve"})
            return
        try:
            queries, topk, return_scores = self._request()
        except ValueError as error:
            self._send(400, {"error": str(error)})
            return
        hits = [self.server.retriever.retrieve_one(query, topk) for query in queries]
        documents = [[({"contents": f"{p.title}\n{p.text}"}, p.relevance) for p in found] for found in hits]
        self._send(200, {"result": [[_hit(d, s) if return_scores else d for d, s in found] for found in documents]})

    def _request(self) -> tuple[list[str], int, bool]:
        length = int(self.headers.get("Content-Length", -1))
        if not 0 <= length <= MAX_BODY_BYTES:
            raise ValueError(f"Content-Length must be between 0 and {MAX_BODY_BYTES}")
        request = orjson.loads(self.rfile.read(length))
        queries = request.get("queries") if isinstance(request, dict) else None
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise ValueError("`queries` must be a list of texts")
        topk = request.get("topk") or self.server.topk
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
            raise ValueError("`topk` must be a whole number of at least 1")
        return queries, topk, bool(request.get("return_scores", False))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = orjson.dumps(answer)
        self.close_connection |= status != 200  # what was refused may not have been read
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: a line a request would drown everything else."""


def _hit(document: dict[str, str], score: float) -> dict[str, Any]:
    return {"document": document, "score": score}


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m treegrpo_cli.envs.retrieval", description="Serve a corpus by BM25."
    )
    parser.add_argument("--corpus", required=True, help="JSON Lines of `contents`, or of `title` and `text`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--topk", type=int, default=3, help="passages a query, where the request does not say")
    options = parser.parse_args(arguments)
    try:
        server = RetrievalServer(BM25Retriever.from_file(options.corpus), options.host, options.port, options.topk)
    except (UserError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"serving {options.corpus} at http://{options.host}:{server.server_port}/retrieve", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
