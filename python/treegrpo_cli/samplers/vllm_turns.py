"""A request -> vLLM's words for it; what an engine says of it, step by step or in one go -> the turn, the completion.

Ranks of the sampled tokens carry the bits of entropies (`vllm_entropies.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from treegrpo_cli.samplers.measures import cut_after
from treegrpo_cli.samplers.stepping import Request
from treegrpo_cli.samplers.text import turn_text
from treegrpo_cli.samplers.undrawn import Undrawn
from treegrpo_cli.samplers.vllm_entropies import entropies_in
from treegrpo_cli.types import Completion

Ended: TypeAlias = "tuple[str, int | str | None]"
"""Why a turn ended, in vLLM's words, and which token or string stopped it."""


def engine_words(request: Request, end_ids: Collection[int]) -> dict[str, Any]:
    """Return what vLLM's sampling parameters are for a request; greedy, log-probabilities are the model's own."""
    params = request.params
    return {
        "max_tokens": params.max_tokens,
        "temperature": 0.0 if params.greedy else params.temperature,
        "top_p": 1.0 if params.greedy else params.top_p,
        "top_k": 0 if params.greedy else params.top_k,
        "seed": request.seed,
        "stop": list(params.stop),
        "stop_token_ids": sorted(end_ids),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,  # the sampled token's alone
    }


@dataclass(slots=True)
class EngineTurn:
    """A turn that the engine samples; `engine_id` is its own name for it."""

    request: Request
    engine_id: str
    undrawn: Undrawn | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    finish_reason: str = ""
    stop: tuple[str, ...] = ()
    """The stop string that ended the turn, if one did."""
    num_cached_tokens: int = 0
    policy_version: int = 0
    """Of the weights that sampled the first token."""

    def take(self, output: Any) -> None:
        """Add what an output of the engine brings, and say why the turn ends where it does."""
        (sampled,) = output.outputs
        logprobs = sampled.logprobs if sampled.token_ids else ()
        at = [each[token] for token, each in zip(sampled.token_ids, logprobs, strict=True)]
        self.ranks += [each.rank for each in at]
        self.num_cached_tokens = output.num_cached_tokens or self.num_cached_tokens
        if sampled.weight_versions:
            self.policy_version = int(sampled.weight_versions[0].version)
        ended = (sampled.finish_reason, sampled.stop_reason) if output.finished else None
        self.add(sampled.token_ids, [each.logprob for each in at], ended)

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float], ended: Ended | None) -> None:
        """Add tokens with their log-probabilities; `ended` says why the turn ends behind them, None where it goes on.

        Cut by `stop_below`, it ends before.
        """
        known = len(self.token_ids)
        self.token_ids += token_ids
        self.logprobs += logprobs
        if self.undrawn:
            for token in token_ids:
                self.undrawn.advance(token)
        if ended:
            self.finish_reason, reason = ended
            self.stop = (reason,) if isinstance(reason, str) else ()
        left = cut_after(self.logprobs, self.request.params, known)
        if left is not None and (left < len(self.token_ids) or not ended):
            del self.token_ids[left:], self.logprobs[left:], self.ranks[left:]
            self.finish_reason, self.stop = "pruned", ()

    def completion(self, tokenizer: Any, end_ids: frozenset[int]) -> Completion:
        """The turn as it ended."""
        return Completion(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            text=turn_text(tokenizer, self.token_ids, self.stop, end_ids),
            finish_reason=self.finish_reason,
            policy_version=self.policy_version,
            num_cached_tokens=self.num_cached_tokens,
            entropies=entropies_in(self.ranks) if self.request.params.entropies else None,
        )
