"""Corpus file -> the passages that share the rarest words with a query (BM25, Lucene's form, k1 1.5, b 0.75).

A word is a run of letters, digits and underscores, in lower case; no stemming, no stop words. For up to about
a million passages: the relevance of every passage is computed for every query, and the corpus is held in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np

from treegrpo_cli.data.json_lines import read_json_lines
from treegrpo_cli.envs.retriever import Passage, read_passage
from treegrpo_cli.errors import FileError
from treegrpo_cli.types import Limits


def words(text: str) -> list[str]:
    """Return the words of a text.

    >>> words("The River-Clyde, 1958")
    ['the', 'river', 'clyde', '1958']
    """
    return re.findall(r"\w+", text.lower())


class BM25Retriever:
    """An index over passages of (title, text); equally relevant ones keep the corpus's order."""

    def __init__(self, passages: Sequence[tuple[str, str]]) -> None:
        self._passages = list(passages)
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index([words(f"{title} {text}") for title, text in self._passages], show_progress=False)

    @classmethod
    def from_file(cls, path: str | Path, limits: Limits | None = None) -> BM25Retriever:
        """Read JSON Lines of `contents` ("title\\ntext"), or of `title` and `text`.

        Raises:
            FileError: names file and line of what is no passage, or the file that holds none.
        """
        passages = []
        for line, row in read_json_lines(path, limits):
            try:
                passages.append(read_passage(row))
            except ValueError as error:
                raise FileError(path, str(error), line) from error
        if not any(words(f"{title} {text}") for title, text in passages):
            raise FileError(path, "holds no passages")
        return cls(passages)

    async def retrieve(self, queries: Sequence[str], topk: int) -> list[list[Passage]]:
        """Return at most `topk` passages for each query, best first; all share a word with it."""
        return [self.retrieve_one(query, topk) for query in queries]

    def retrieve_one(self, query: str, topk: int) -> list[Passage]:
        """Return at most `topk` passages for one query, best first."""
        known = [word for word in words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        relevance = self._index.get_scores(known)
        k = min(topk, len(relevance))
        candidates = np.flatnonzero((relevance > 0) & (relevance >= np.partition(relevance, -k)[-k]))
        best = candidates[np.argsort(-relevance[candidates], kind="stable")][:k]
        return [Passage(title, text, float(relevance[i])) for i in best for title, text in [self._passages[i]]]

    async def check(self) -> None:
        """An index in memory always answers."""

    async def close(self) -> None:
        """Nothing is held open."""
