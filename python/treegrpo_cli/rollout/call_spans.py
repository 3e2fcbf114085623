"""Sampled text -> where its tool calls stand, and which of the turn's tokens they are: nothing is tokenised again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.rollout.own_readers import read_json
from treegrpo_cli.rollout.token_places import places_of

Span: TypeAlias = tuple[int, int]
"""[start, end) of characters."""


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

    A token's place is the length of what the tokens before it decode to.
    """
    mask = np.zeros(len(token_ids), dtype=np.bool_)
    if not spans:
        return mask
    places = places_of(tokenizer, token_ids)
    for start, end in spans:
        first = places.num_tokens(start + 1)  # those up to the one behind which the span has begun
        last = places.num_tokens(end)
        mask[first - 1 : last] = True
    return mask
