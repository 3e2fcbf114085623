"""Test doubles: a sampler whose turns are a pure function of context and seed, and a slow, failing world."""

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from treegrpo_cli.samplers.base import EngineCounts
from treegrpo_cli.types import Completion, SamplingParams, TokenIds


class HashSampler:
    """Writes turns of random bytes, searches and answers; waits a random while, so that order of arrival is random."""

    name = "hash"
    max_model_len = 4096

    def __init__(
        self,
        tokenizer: Any,
        *,
        delay_s: float = 0.0,
        jitter_seed: int = 0,
        delay: Callable[[TokenIds], float] | None = None,
    ) -> None:
        self.tokenizer, self.delay_s, self.delay = tokenizer, delay_s, delay
        self.jitter = random.Random(jitter_seed)
        self.policy_version = 0
        self.contexts: list[tuple[list[int], int]] = []
        self.params: list[SamplingParams] = []

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        self.contexts.append(([int(token) for token in context], seed))
        self.params.append(params)
        if self.delay is not None:
            await asyncio.sleep(max(0.0, self.delay(context)))
        if self.delay_s:
            await asyncio.sleep(self.delay_s * self.jitter.random())
        draw = random.Random(hash((tuple(int(t) for t in context), seed)))
        kind = draw.choice(["search", "search", "answer", "nothing"])
        word = draw.choice(["lisbon", "paris", "rome"])
        text = {"search": f"<search>{word}</search>", "answer": f"<answer>{word}</answer>", "nothing": word}[kind]
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        reason = "stop"
        if len(token_ids) > params.max_tokens:
            token_ids, reason = token_ids[: params.max_tokens], "length"
            text = self.tokenizer.decode(token_ids)
        logprobs = [-draw.random() for _ in token_ids]
        return Completion(token_ids, logprobs, text, reason, self.policy_version)

    def update_weights(self, weights: Iterable[tuple[str, Any]], policy_version: int) -> None:
        self.policy_version = policy_version

    takes_adapter = False

    def update_adapter(self, adapter: Any, policy_version: int) -> None:
        raise NotImplementedError

    def sleep(self) -> None:
        pass

    def prefix_cache_hit_ratio(self) -> float | None:
        return None

    def take_counts(self) -> EngineCounts:
        return EngineCounts()

    def close(self) -> None:
        pass
