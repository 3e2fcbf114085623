"""Question -> searches -> answer: the environment of Search-R1, over an embedded or a remote retriever."""

from __future__ import annotations

from typing import Literal

from treegrpo_cli.envs.retriever import Passage, Retriever
from treegrpo_cli.envs.tools import ToolEnvironment
from treegrpo_cli.errors import UserError
from treegrpo_cli.types import Limits

INLINE_INSTRUCTIONS = """\
Answer the question below. Whenever you learn something new, first reason about it \
between <think> and </think>. \
If a piece of knowledge is missing, ask the search engine by writing <search> your query </search>; \
the best passages come back between <information> and </information>. Search as often as you need. \
As soon as nothing is missing, write the answer alone, without explanation, between <answer> and </answer>, \
for example <answer> Lisbon </answer>."""

CHAT_INSTRUCTIONS = """\
Answer the question below. Whenever you learn something new, first reason about it \
between <think> and </think>. \
If a piece of knowledge is missing, call the tool `search`; search as often as you need. \
As soon as nothing is missing, write the answer alone, without explanation, between <answer> and </answer>, \
for example <answer> Lisbon </answer>."""


class SearchEnvironment(ToolEnvironment):
    """An agent with one tool, `search`, that shows the best `topk` passages for a query.

    Options: exactly one of `corpus` (a file; embedded BM25) and `retriever_url` (Search-R1's protocol over
    HTTP), `topk` passages a query (0 shows none: what does the policy know by itself?), `instructions` in
    place of the built-in ones, and `max_response_bytes` of the retriever, counted behind its compression.
    `file_limits` are not among them: the corpus is read within `[limits]`.
    """

    def __init__(
        self,
        corpus: str | None = None,
        retriever_url: str | None = None,
        topk: int = 3,
        dialect: Literal["inline", "chat"] = "inline",
        instructions: str | None = None,
        max_response_bytes: int = 4 * 2**20,
        file_limits: Limits | None = None,
    ) -> None:
        if topk < 0:
            raise UserError(f"environment.options.topk: must be 0 or more, got {topk}")
        self._retriever = _retriever(corpus, retriever_url, max_response_bytes, file_limits)
        self._topk = topk
        super().__init__([self.search], dialect, instructions)

    def _write_instructions(self, dialect: str) -> str:
        return INLINE_INSTRUCTIONS if dialect == "inline" else CHAT_INSTRUCTIONS

    async def search(self, query: str) -> str:
        """Search the corpus and return the passages that fit the query best.

        Args:
            query: Words to look for.
        """
        if self._topk == 0:
            return show([])
        (passages,) = await self._retriever.retrieve([query], self._topk)
        return show(passages)

    async def check(self) -> None:
        """Raise UserError where the retriever does not answer."""
        await self._retriever.check()

    async def close(self) -> None:
        """Close the retriever's connections."""
        await self._retriever.close()


def show(passages: list[Passage]) -> str:
    """Return the passages as the policy reads them, best first.

    >>> show([Passage("Lisbon", "Lisbon is the capital of Portugal.")])
    'Doc 1(Title: Lisbon) Lisbon is the capital of Portugal.'
    """
    lines = [f"Doc {i}(Title: {p.title}) {p.text}" for i, p in enumerate(passages, start=1)]
    return "\n".join(lines) or "No passage was found."


def _retriever(
    corpus: str | None, retriever_url: str | None, max_response_bytes: int, file_limits: Limits | None
) -> Retriever:
    if (corpus is None) == (retriever_url is None):
        raise UserError(
            "environment.options: give one of `corpus` (a file) and `retriever_url` to the search environment"
        )
    if corpus is not None:
        from treegrpo_cli.envs.bm25 import BM25Retriever

        return BM25Retriever.from_file(corpus, file_limits)
    from treegrpo_cli.envs.http_retriever import HTTPRetriever

    assert retriever_url is not None
    return HTTPRetriever(retriever_url, max_response_bytes)
