"""Sampled text -> where its tool calls stand, and which of the turn's tokens they are: nothing is tokenised again."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.rollout.own_readers import read_json

Span: TypeAlias = tuple[int, int]
"""[start, end) of characters."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What bytes of a character decode to while the rest of it is missing."""


def json_spans(text: str) -> list[Span]:
    """The spans of the calls that `read_json` reads, with their marks; a call that cannot be read has one too.

    >>> json_spans('First <tool_call>{"name": "f"}</tool_call> and')
    [(6, 42)]
    >>> json_spans('{"name": "f", "arguments": {}}'), json_spans("{1, 2}"), json_spans("Paris")
    ([(0, 30)], [], [])
    """
    start = len(text) - len(text.rpartition("</think>")[2])
    spoken = text[start:]
    if "<tool_call>" in spoken:
        found = re.finditer(r"<tool_call>.*?(?:</tool_call>|\Z)", spoken, re.DOTALL)
    elif spoken.lstrip().startswith(("{", "[", "<|python_tag|>")) and _holds_calls(spoken):
        found = re.finditer(r"\S.*\S", spoken, re.DOTALL)
    else:
        found = re.finditer(r"```.*?(?:```|\Z)", spoken, re.DOTALL)
        return [(start + m.start(), start + m.end()) for m in found if _holds_calls(m[0])]
    return [(start + match.start(), start + match.end()) for match in found]


def harmony_spans(text: str) -> list[Span]:
    """The spans of the messages to `functions.NAME` that `read_harmony` reads.

    >>> harmony_spans("<|channel|>commentary to=functions.f<|message|>{}<|call|>")
    [(0, 57)]
    """
    return list(_messages_to_functions(text))


FINDERS: dict[str, Callable[[str], list[Span]]] = {"json": json_spans, "harmony": harmony_spans}
"""By the name of the reader."""


def _holds_calls(text: str) -> bool:
    try:
        return bool(read_json(text))
    except ValueError:  # a call that cannot be read
        return True


def _messages_to_functions(text: str) -> Iterator[Span]:
    start = 0
    for written in text.split("<|start|>"):
        if re.search(r"to=functions\.[^\s<]+", written.partition("<|message|>")[0]):
            yield start, start + len(written)
        start += len(written) + len("<|start|>")


def tokens_of(tokenizer: Any, token_ids: Sequence[int], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Which tokens hold a character of the spans of their text, [T].

    A token's place is the length of what the tokens before it decode to, found by bisection: a few decodings a span.
    """
    mask = np.zeros(len(token_ids), dtype=np.bool_)
    known: dict[int, int] = {}

    def length(num_tokens: int) -> int:
        """Whole characters that the first tokens decode to."""
        if num_tokens not in known:
            text: str = tokenizer.decode(list(token_ids[:num_tokens]), skip_special_tokens=False)
            known[num_tokens] = len(text.rstrip(UNFINISHED)) if num_tokens < len(token_ids) else len(text)
        return known[num_tokens]

    for start, end in spans:
        places = range(1, len(token_ids) + 1)
        first = bisect_left(places, start + 1, key=length)  # the first token behind which the span has begun
        last = bisect_left(places, end, key=length)  # the first behind which it has ended
        mask[first : last + 1] = True
    return mask
