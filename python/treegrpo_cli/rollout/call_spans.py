"""Sampled text -> where its tool calls stand, and which of the turn's tokens they are: nothing is tokenised again."""

from __future__ import annotations

import re
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

    A token's place is the length of what the tokens before it decode to: a few decodings a span.
    """
    mask, places = np.zeros(len(token_ids), dtype=np.bool_), Places(tokenizer, token_ids)
    for start, end in spans:
        first = places.num_tokens(start + 1)  # those up to the one behind which the span has begun
        last = places.num_tokens(end)
        mask[first - 1 : last] = True
    return mask


class Places:
    """The tokens of a turn, by the characters that they decode to."""

    def __init__(self, tokenizer: Any, token_ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, np.asarray(token_ids)  # of a list every entry's type is looked at
        self._known = {0: 0}

    def num_tokens(self, length: int) -> int:
        """The fewest tokens that hold so many characters; one more than there are where all hold fewer.

        Every other guess takes the characters as evenly spread, which most are; those between cut what is left in half.
        """
        low, high, is_even = 0, len(self._ids), True
        if self._length(high) < length:
            return high + 1
        while high - low > 1:
            share = (length - self._length(low)) / max(self._length(high) - self._length(low), 1) if is_even else 0.5
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
            low, high = (low, middle) if self._length(middle) >= length else (middle, high)
            is_even = not is_even
        return high

    def _length(self, num_tokens: int) -> int:
        """Whole characters that the first tokens decode to."""
        if num_tokens not in self._known:
            text: str = self._tokenizer.decode(self._ids[:num_tokens], skip_special_tokens=False)
            whole = text if num_tokens == len(self._ids) else text.rstrip(UNFINISHED)
            self._known[num_tokens] = len(whole)
        return self._known[num_tokens]
