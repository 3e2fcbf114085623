"""A request -> the body that a server is sent; its answer -> what it sampled, every number looked at.

vLLM 0.32 answers tokens for tokens at `/inference/v1/generate`, and says which weights sampled them; it is there with
`--enable-scale-out`. `/v1/completions` takes a list of ids too, in older servers as well, and does not say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from treegrpo_cli.samplers.stepping import Request
from treegrpo_cli.samplers.vllm_turns import engine_words

MAX_POSITIVE = 1e-4
"""Nats: rounding may leave a log-probability this much above 0."""
NO_LOGPROB = -9999.0
"""What vLLM sends for a log-probability that it does not have, or that is no number."""
BODY_BYTES, TOKEN_BYTES = 1 << 16, 1 << 10
"""What an answer may take, and each token of its turn in it."""
ENDS = ("stop", "length")

NEUTRAL = {
    "n": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "ignore_eos": False,
}
"""Said because a server may have other defaults: from the model's generation config, or its owner's."""


class BrokenOffError(Exception):
    """The server ended a turn for reasons of its own: it is shutting down, or paused."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a server says of one turn; `labels` name the weights that sampled it, in order, None where it does not say.

    `num_cached_tokens` is None where it does not count them. `top` are a token's largest log-probabilities, if asked.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    stop_reason: int | str | None
    model: str
    labels: tuple[str, ...] | None
    num_cached_tokens: int | None
    top: list[list[float]]


class Route(Protocol):
    """One way to ask for a turn."""

    path: str

    def body(self, request: Request, end_ids: Collection[int], model: str, num_top: int = 0) -> dict[str, Any]:
        """What is sent."""
        ...

    def read(self, answer: Any, request: Request, vocab_size: int) -> Sampled:
        """What was answered. Raises ValueError where it cannot be, BrokenOffError where the turn did not end."""
        ...


class Generate:
    """Tokens in, tokens out."""

    path = "/inference/v1/generate"

    def body(self, request: Request, end_ids: Collection[int], model: str, num_top: int = 0) -> dict[str, Any]:
        """The sampling parameters are vLLM's own."""
        words = {**NEUTRAL, **engine_words(request, end_ids), "logprobs": num_top}
        return {"token_ids": request.context, "sampling_params": words, "model": model}

    def read(self, answer: Any, request: Request, vocab_size: int) -> Sampled:
        """Each token comes with its log-probability."""
        choice = _choice(answer)
        entries = _listed(_table(choice.get("logprobs")).get("content"), "log-probabilities")
        token_ids = _token_ids(choice, vocab_size)
        if [_table(entry).get("token_id") for entry in entries] != token_ids:
            raise ValueError(f"its {len(entries)} log-probabilities are not those of its {len(token_ids)} tokens")
        tops = [[_table(top).get("logprob") for top in _tops(entry)] for entry in entries]
        logprobs = [entry.get("logprob") for entry in entries]
        return _checked(answer, choice, request, token_ids, logprobs, tops, _labels(choice))


class Completions:
    """OpenAI's route for a text that goes on, with tokens for text."""

    path = "/v1/completions"

    def body(self, request: Request, end_ids: Collection[int], model: str, num_top: int = 0) -> dict[str, Any]:
        """The same parameters, beside the prompt."""
        words = {**NEUTRAL, **engine_words(request, end_ids), "logprobs": num_top}
        return {"prompt": request.context, "model": model, "return_token_ids": True, "stream": False, **words}

    def read(self, answer: Any, request: Request, vocab_size: int) -> Sampled:
        """The tokens beside the text, which is not read."""
        choice = _choice(answer)
        found = _table(choice.get("logprobs"))
        tops = [list(_table(top).values()) for top in _tops(found)]
        logprobs = _listed(found.get("token_logprobs"), "log-probabilities")
        return _checked(answer, choice, request, _token_ids(choice, vocab_size), logprobs, tops, None)


def max_bytes(request: Request) -> int:
    """How long an answer may be."""
    return BODY_BYTES + TOKEN_BYTES * request.params.max_tokens


def _checked(
    answer: dict[str, Any],
    choice: dict[str, Any],
    request: Request,
    token_ids: list[int],
    logprobs: Sequence[Any],
    tops: list[list[Any]],
    labels: tuple[str, ...] | None,
) -> Sampled:
    reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if reason in ("abort", "error"):
        raise BrokenOffError(f"the turn was broken off ({reason})")
    if reason not in ENDS:
        raise ValueError(f"the turn ended by {reason!r:.60}, which is not known here")
    if not isinstance(stop, int | None) and stop not in request.params.stop:
        raise ValueError(f"the turn stopped at {stop!r:.60}, which was not asked for")
    if not 1 <= len(token_ids) <= request.params.max_tokens:
        raise ValueError(f"{len(token_ids)} tokens, asked for 1 to {request.params.max_tokens}")
    if len(logprobs) != len(token_ids):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(token_ids)} tokens")
    model = answer.get("model")
    return Sampled(
        token_ids=token_ids,
        logprobs=[logprob_of(value) for value in logprobs],
        finish_reason=reason,
        stop_reason=stop,
        model=model if isinstance(model, str) else "",
        labels=labels,
        num_cached_tokens=_cached(answer, len(request.context)),
        top=[[logprob_of(value) for value in top] for top in tops],
    )


def logprob_of(value: Any) -> float:
    """Return a log-probability, nats.

    Raises ValueError where it is none.

    >>> logprob_of(-1)
    -1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.60} is no log-probability")
    if value > MAX_POSITIVE:
        raise ValueError(f"a log-probability of {value:g}, above 0: start it with --logprobs-mode processed_logprobs")
    if value <= NO_LOGPROB:
        raise ValueError("a token without a log-probability, or with one that is no number")
    return float(value)


def _choice(answer: Any) -> dict[str, Any]:
    choices = _listed(_table(answer).get("choices"), "choices")
    if len(choices) != 1:
        raise ValueError(f"{len(choices)} choices, asked for one")
    return _table(choices[0])


def _token_ids(choice: dict[str, Any], vocab_size: int) -> list[int]:
    token_ids = _listed(choice.get("token_ids"), "token_ids")
    for token in token_ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"token {token!r:.60} is not of the model's {vocab_size}")
    return token_ids


def _labels(choice: dict[str, Any]) -> tuple[str, ...] | None:
    spans = choice.get("weight_versions")
    return None if spans is None else tuple(str(_table(span).get("version")) for span in _listed(spans, "versions"))


def _tops(table: dict[str, Any]) -> list[Any]:
    found = table.get("top_logprobs")
    return [] if found is None else _listed(found, "top log-probabilities")


def _cached(answer: dict[str, Any], context_tokens: int) -> int | None:
    usage = answer.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if cached is None:
        return None
    if type(cached) is not int or not 0 <= cached <= context_tokens:
        raise ValueError(f"{cached!r:.60} cached tokens of a prompt of {context_tokens}")
    return cached


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected, got {value!r:.60}")
    return value


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"no list of {name}: {value!r:.60}")
    return value
