"""Sampled tokens -> where a turn ends, and its text: the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treegrpo_cli.models.pretrained import read_model_config

MAX_BYTES_PER_CHARACTER = 4


def find_stop(tokenizer: Any, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Return whether a stop string stands in the text of the last tokens, as many as the longest can span.

    Asked after every token, this finds a stop string with the token that completes it, also inside it.
    """
    if not stop:
        return False
    span = MAX_BYTES_PER_CHARACTER * max(map(len, stop)) + 1
    tail: str = tokenizer.decode(token_ids[-span:], skip_special_tokens=False)
    return any(text in tail for text in stop)


def turn_text(tokenizer: Any, token_ids: Sequence[int], stop: Sequence[str], end_ids: frozenset[int]) -> str:
    """Decode a turn without the end token at its end, cut behind the stop string that ends first."""
    body = token_ids[:-1] if token_ids and token_ids[-1] in end_ids else token_ids
    text: str = tokenizer.decode(list(body), skip_special_tokens=False)
    ends = [text.find(string) + len(string) for string in stop if string in text]
    return text[: min(ends)] if ends else text


def end_token_ids(model_path: str, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a turn: the generation config's (or the model's) and the tokenizer's own."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:
        ends = read_model_config(model_path).eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)
