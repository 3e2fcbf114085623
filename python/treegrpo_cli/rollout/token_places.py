"""Tokens of a turn -> how many of them hold so many characters; nothing is tokenised again.

A token of byte-level BPE is so many bytes wherever it stands, so that one sum says where all of them are. Where a
tokenizer is another, or a turn does not decode to as many bytes, prefixes are decoded until the place is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What bytes of a character decode to while the rest of it is missing."""


class Places(Protocol):
    """Where the tokens of one turn stand in its text."""

    def num_tokens(self, length: int) -> int:
        """The fewest tokens that hold so many characters; one more than there are where all hold fewer."""
        ...


def places_of(tokenizer: Any, token_ids: Sequence[int]) -> Places:
    """Return the places of these tokens: summed where that is certain to be right, else searched."""
    ids, sizes = np.asarray(token_ids), _sizes_of(tokenizer)  # of a list, `decode` looks at the type of each entry
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    if sizes is not None and len(ids) and int(ids.max()) < len(sizes):
        ends = np.cumsum(sizes[ids])
        if int(ends[-1]) == len(text.encode()):
            return SummedPlaces(text, ends)
    return SearchedPlaces(tokenizer, ids, text)


class SummedPlaces:
    """Places by the bytes of each token; `ends` [T]: bytes up to the end of each."""

    def __init__(self, text: str, ends: NDArray[np.int64]) -> None:
        self._text, self._ends = text, ends

    def num_tokens(self, length: int) -> int:
        """The fewest tokens that hold so many characters; one more than there are where all hold fewer."""
        if length > len(self._text):
            return len(self._ends) + 1
        return int(np.searchsorted(self._ends, len(self._text[:length].encode()))) + 1


class SearchedPlaces:
    """Places by decoding prefixes: a few for each that is asked for."""

    def __init__(self, tokenizer: Any, token_ids: NDArray[Any], text: str) -> None:
        self._tokenizer, self._ids = tokenizer, token_ids
        self._known = {0: 0, len(token_ids): len(text)}

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
            self._known[num_tokens] = len(text.rstrip(UNFINISHED))
        return self._known[num_tokens]


_known: WeakKeyDictionary[Any, NDArray[np.int64] | None] = WeakKeyDictionary()


def _sizes_of(tokenizer: Any) -> NDArray[np.int64] | None:
    """Bytes of each token, [V]; None where the tokenizer is not of byte-level BPE."""
    if tokenizer not in _known:
        _known[tokenizer] = _byte_sizes(tokenizer)
    return _known[tokenizer]


def _byte_sizes(tokenizer: Any) -> NDArray[np.int64] | None:
    """The same, worked out: each character of a token's name is a byte, but for added tokens, which are themselves."""
    from tokenizers import pre_tokenizers

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    added = {place: str(token) for place, token in tokenizer.added_tokens_decoder.items()}
    names: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    plain = {name for place, name in enumerate(names) if name is not None and place not in added}
    if not set().union(*plain) <= set(pre_tokenizers.ByteLevel.alphabet()):
        return None
    sizes = [len(added[place].encode()) if place in added else len(name or "") for place, name in enumerate(names)]
    return np.array(sizes, dtype=np.int64)
