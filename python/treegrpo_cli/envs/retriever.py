"""Queries -> passages: what every retriever offers, and how a passage is read from untrusted JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a corpus; the greater `relevance`, the better it fits the query (`score` in Search-R1's protocol)."""

    title: str
    text: str
    relevance: float = 0.0


class Retriever(Protocol):
    """Finds passages for queries."""

    async def retrieve(self, queries: Sequence[str], topk: int) -> list[list[Passage]]:
        """Return at most `topk` passages for each query, best first; raises ToolError where it cannot."""
        ...

    async def check(self) -> None:
        """Raise UserError where it does not answer at all."""
        ...

    async def close(self) -> None:
        """Give back what it holds open."""
        ...


def read_passage(document: Any) -> tuple[str, str]:
    """Return title and text of `{"contents": "title\\ntext"}` or of `{"title": …, "text": …}`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(document, Mapping):
        contents = document.get("contents")
        if isinstance(contents, str):
            title, _, text = contents.partition("\n")
            return title, text
        pair = document.get("title"), document.get("text")
        if isinstance(pair[0], str) and isinstance(pair[1], str):
            return pair[0], pair[1]
    raise ValueError(f"a passage needs `contents`, or `title` and `text`, as text; got {document!r:.100}")
