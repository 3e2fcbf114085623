"""What a server says of itself, and what its log-probabilities show of it -> whether it can serve this run."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from treegrpo_cli.errors import UserError

if TYPE_CHECKING:
    from treegrpo_cli.samplers.server_client import ServerClient
    from treegrpo_cli.samplers.server_protocols import Sampled

TEXTS = (
    "What is the capital of the country where the author of the work was born?",
    "def area(radius):\n    return",
    "1, 2, 3, 4, 5, 6,",
)
"""What a model is known by: how it goes on."""
TEMPERATURE = 2.0
MODE = "--logprobs-mode processed_logprobs"
NEAR = 0.1
"""Nats, on average: what rounding may do between two starts of one model, in any precision."""


class Card(NamedTuple):
    """A server's model: the name that requests call it by, and the longest context plus turn, in tokens."""

    model: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Greedy turns behind fixed contexts: (tokens, log-probabilities)."""

    turns: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]

    @classmethod
    def of(cls, sampled: Sequence[Sampled]) -> Fingerprint:
        """Take what a server answered."""
        return cls(tuple((tuple(found.token_ids), tuple(found.logprobs)) for found in sampled))

    def differs(self, other: Fingerprint) -> str:
        """Say how far apart two are, "" where they are of one model: up to where their tokens part, rounding aside.

        >>> Fingerprint((((5, 6), (-1.0, -2.0)),)).differs(Fingerprint((((5, 7), (-1.0, -2.01)),)))
        ''
        """
        apart: list[float] = []
        for (tokens, logprobs), (others, other_logprobs) in zip(self.turns, other.turns, strict=True):
            for token, logprob, another, other_logprob in zip(tokens, logprobs, others, other_logprobs, strict=False):
                apart.append(abs(logprob - other_logprob))
                if token != another:
                    break
        mean = math.fsum(apart) / max(len(apart), 1)
        return f"its log-probabilities are {mean:.2g} nats away on average" if not mean <= NEAR else ""


def read_card(client: ServerClient, answer: Any) -> Card:
    """Return the base model of what `/v1/models` lists; adapters have a parent. Raises UserError."""
    listed = answer.get("data") if isinstance(answer, dict) else None
    models = [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
    for model in models:
        name, length = model.get("id"), model.get("max_model_len")
        if not model.get("parent") and isinstance(name, str) and type(length) is int and length > 0:
            return Card(name, length)
    raise client.wrong("/v1/models", "it lists no model with an id and a max_model_len, as vLLM's does")


async def check_temperature(name: str, tops: Callable[[float], Awaitable[list[list[float]]]]) -> None:
    """Raise UserError unless log-probabilities are those of the distribution that is sampled from.

    `tops` asks for the log-probabilities of the two tokens that are left by top-k = 2, at a temperature. Their chances
    add up to 1 then, and twice the temperature halves their distance; of the model's own neither is true.
    """
    once, twice = [[pair for pair in await tops(at) if len(pair) == 2] for at in (1.0, TEMPERATURE)]
    if not once or len(once) != len(twice):
        raise UserError(f"{name}: does not give the log-probabilities of several tokens, by which it is checked")
    masses = [math.exp(first) + math.exp(second) for first, second in [*once, *twice]]
    before, after = (math.fsum(abs(first - second) for first, second in pairs) for pairs in (once, twice))
    halved = abs(after - before / TEMPERATURE) <= before / 4 + 0.01  # coarse: logits of bfloat16 are
    if not halved or any(abs(mass - 1) > 0.01 for mass in masses):
        raise UserError(
            f"{name}: its log-probabilities are not those of the distribution sampled from; start it with {MODE}"
        )
