"""Text -> token ids behind a sampled turn: encoding, breaking of structure in what tools said, cutting to a limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.templates import render
from treegrpo_cli.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[dict[str, Any]]

BORDERS = ("\n", ".", "x")
"""Texts to tokenise another one behind, tried until one does not merge with it."""
_CHARS_A_TOKEN = 32
"""An observation is first cut to so many characters a token: a bound on work, far above real text."""


class Templated:
    """A tokenizer with its chat template, the tools, and the limits of what is written with them."""

    stop: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    reader_name: str = ""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Tools,
        max_observation_tokens: int,
        template_timeout_s: float = 5.0,
        *,
        end_ids: Iterable[int] = (),
        tool_parser: str = "auto",
    ) -> None:
        """Take the tokens at which the engine ends a turn, beside the tokenizer's own, and who reads tool calls."""
        self._tokenizer, self._tools, self._max_tokens = tokenizer, tools, max_observation_tokens
        self._template_timeout_s, self._tool_parser = template_timeout_s, tool_parser
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self._end_ids = frozenset([*end_ids, *own])
        self._encoder = Encoder(tokenizer)
        self._prepare()

    def _prepare(self) -> None:
        """Find out before the first rollout what cannot be written; raises UserError."""

    def _render(self, messages: Sequence[Message], tools: Tools = (), *, reply: bool = True) -> str:
        return render(self._tokenizer, messages, tools, timeout_s=self._template_timeout_s, reply=reply)


class Encoder:
    """Texts to tokens, at the beginning of a context and in the middle of one.

    SentencePiece tokenizers write a space before a text's first word. Behind a sampled turn nothing begins, so a text
    is tokenised behind another there, whose tokens are cut off.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        first = self.whole("x")
        self._marks_the_beginning = self.whole("\nx")[-len(first) :] != first

    def whole(self, text: str) -> list[int]:
        """Tokenise what begins a context; the text holds its special tokens itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def behind(self, text: str) -> list[int]:
        """Tokenise what stands behind other tokens."""
        for border in BORDERS if self._marks_the_beginning else ():
            head, ids = self.whole(border), self.whole(border + text)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        return self.whole(text)


def message(role: str, content: str) -> Message:
    """Return a chat message."""
    return {"role": role, "content": content}


def structural_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return special tokens, and added ones in brackets such as `</tool_response>`."""
    bracketed = [token for token in tokenizer.get_added_vocab() if re.fullmatch(r"[<\[].+[>\]]", token)]
    return [*tokenizer.all_special_tokens, *bracketed]


def breaker(strings: Iterable[str]) -> Callable[[str], str]:
    """Return a function that puts a space behind the first character of each of these strings."""
    longest_first = sorted({s for s in strings if len(s) > 1}, key=len, reverse=True)
    if not longest_first:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(s) for s in longest_first))
    return lambda text: pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def clean(message: Message, break_structure: Callable[[str], str], max_tokens: int) -> Message:
    """Bound the content, and break structure in what a tool said; the rest is the environment's own."""
    content = message["content"][: max_tokens * _CHARS_A_TOKEN]
    return {**message, "content": break_structure(content) if message["role"] == "tool" else content}


def fit(encode: Callable[[list[str]], list[int]], contents: list[str], max_tokens: int) -> list[int]:
    """Return `encode(contents)`, each content cut to the greatest common length at which the limit is met.

    Raises:
        UserError: not even empty contents fit.
    """
    ids = encode(contents)
    if len(ids) <= max_tokens:
        return ids
    fitting = encode([""] * len(contents))
    if len(fitting) > max_tokens:
        raise UserError(
            f"rollout.max_observation_tokens: {max_tokens} tokens leave no room for a result, "
            f"whose wrapping takes {len(fitting)}"
        )
    low, high = 0, max(len(content) for content in contents)
    while high - low > 1:
        middle = (low + high) // 2
        ids = encode([content[:middle] for content in contents])
        low, high, fitting = (middle, high, ids) if len(ids) <= max_tokens else (low, middle, fitting)
    return fitting
