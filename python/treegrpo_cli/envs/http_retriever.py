"""Queries -> passages over HTTP, by the protocol of Search-R1's retriever; no answer is trusted.

`POST {"queries": [...], "topk": k, "return_scores": true}` is answered by
`{"result": [[{"document": {"contents": "title\\ntext"}, "score": s}]]}`.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any

import httpx
import orjson

from treegrpo_cli.envs.http_client import HTTPClient
from treegrpo_cli.envs.retriever import Passage, read_passage
from treegrpo_cli.errors import ToolError, UserError

CHECK_TIMEOUT_S = 30.0
MAX_RESPONSE_BYTES = 4 * 2**20
KEY = "environment.options.retriever_url"


class HTTPRetriever:
    """A client of the retriever at `url`; a URL without a path gets `/retrieve`."""

    def __init__(self, url: str, max_response_bytes: int = MAX_RESPONSE_BYTES) -> None:
        if max_response_bytes < 1:
            raise UserError(f"environment.options.max_response_bytes: must be 1 or more, got {max_response_bytes}")
        try:
            parsed = httpx.URL(url)
            proper = parsed.scheme in ("http", "https") and bool(parsed.host) and parsed.netloc.decode() != ""
        except (httpx.InvalidURL, ValueError):  # neither is shown: a URL may hold a password
            proper = False
        if not proper:
            raise UserError(f"{KEY}: {_without_secrets(url)!r} is not an http(s) address")
        if parsed.port is not None and not 0 < parsed.port < 2**16:
            raise UserError(f"{KEY}: {_without_secrets(url)!r}: no such port")
        self.url = parsed.copy_with(path="/retrieve") if parsed.path in ("", "/") else parsed
        self._client = HTTPClient(self.url, max_response_bytes)

    async def retrieve(self, queries: Sequence[str], topk: int) -> list[list[Passage]]:
        """Return at most `topk` passages for each query, in the order of the retriever.

        Raises:
            ToolError: it cannot be reached, answers with an error, or with what the protocol does not say.
        """
        body = orjson.dumps({"queries": list(queries), "topk": topk, "return_scores": True})
        try:
            content = await self._client.post(body)
            return _read_answer(content, len(queries), topk)
        except ToolError as error:
            raise ToolError(f"retriever {error}") from error
        except ValueError as error:
            raise ToolError(f"retriever {self._client.name}: {error}") from error

    async def check(self) -> None:
        """Send one query; UserError where no proper answer comes."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self.retrieve(["is anybody there"], 1)
        except TimeoutError as error:
            raise UserError(f"retriever {self._client.name}: no answer within {CHECK_TIMEOUT_S:g} s") from error
        except ToolError as error:
            raise UserError(f"{error} ({KEY}: is it running?)") from error

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment, as far as it can be read."""
    return re.sub(r"^(\w+://)?.*@", r"\1", re.split(r"[?#]", url, maxsplit=1)[0], flags=re.DOTALL)[:200]


def _read_answer(content: bytes, num_queries: int, topk: int) -> list[list[Passage]]:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the answer is not JSON ({error}): {content[:60]!r}") from error
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list):
        raise ValueError(f"the answer has no list `result`: {content[:60]!r}")
    if len(result) != num_queries:
        raise ValueError(f"{len(result)} results for {num_queries} queries")
    return [_read_hits(hits)[:topk] for hits in result]


def _read_hits(hits: Any) -> list[Passage]:
    if not isinstance(hits, list):
        raise ValueError(f"a query's result must be a list, got {hits!r:.100}")
    return [_read_hit(hit) for hit in hits]


def _read_hit(hit: Any) -> Passage:
    if not isinstance(hit, dict) or "document" not in hit or "score" not in hit:
        raise ValueError(f"a passage must have `document` and `score`, got {hit!r:.100}")
    score = hit["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"a score must be a finite number, got {score!r:.100}")
    return Passage(*read_passage(hit["document"]), relevance=float(score))
