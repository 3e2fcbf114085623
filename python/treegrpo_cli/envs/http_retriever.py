"""Queries -> passages over HTTP, by the protocol of Search-R1's retriever; no answer is trusted.

`POST {"queries": [...], "topk": k, "return_scores": true}` is answered by
`{"result": [[{"document": {"contents": "title\\ntext"}, "score": s}]]}`. A connection lives for one request,
so that any event loop may ask; the environment's proxy settings are not used.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Sequence
from typing import Any

import httpx
import orjson

from treegrpo_cli.envs.retriever import Passage, read_passage
from treegrpo_cli.errors import ToolError, UserError

CHECK_TIMEOUT_S = 30.0


class HTTPRetriever:
    """A client of the retriever at `url`; a URL without a path gets `/retrieve`."""

    def __init__(self, url: str) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"environment.options.retriever_url: {url!r}: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UserError(f"environment.options.retriever_url: {url!r} is no http(s) address")
        if parsed.port is not None and not 0 < parsed.port < 2**16:
            raise UserError(f"environment.options.retriever_url: {url!r}: no such port")
        self.url = parsed.copy_with(path="/retrieve") if parsed.path in ("", "/") else parsed
        self._verify: ssl.SSLContext | bool = httpx.create_ssl_context() if parsed.scheme == "https" else False

    async def retrieve(self, queries: Sequence[str], topk: int) -> list[list[Passage]]:
        """Return at most `topk` passages for each query, in the order of the retriever.

        Raises:
            ToolError: it cannot be reached, answers with an error, or with what the protocol does not say.
        """
        body = orjson.dumps({"queries": list(queries), "topk": topk, "return_scores": True})
        content = await self._post(body)
        try:
            return _read_answer(content, len(queries), topk)
        except ValueError as error:
            raise ToolError(f"retriever {self.url}: {error}") from error

    async def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        try:
            # Who asks sets the time limit, and covers the whole call with it.
            async with httpx.AsyncClient(verify=self._verify, timeout=None, trust_env=False) as client:  # noqa: S113
                response = await client.post(self.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise ToolError(f"retriever {self.url}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise ToolError(f"retriever {self.url}: HTTP {response.status_code}: {response.text[:100]!r}")
        return response.content

    async def check(self) -> None:
        """Send one query; UserError where no proper answer comes."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self.retrieve(["is anybody there"], 1)
        except TimeoutError as error:
            raise UserError(f"retriever {self.url}: no answer within {CHECK_TIMEOUT_S:g} s") from error
        except ToolError as error:
            raise UserError(f"{error} (environment.options.retriever_url: is it running?)") from error


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
    return Passage(*read_passage(hit["document"]), score=float(score))
