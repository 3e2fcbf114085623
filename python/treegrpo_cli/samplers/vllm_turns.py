"""What vLLM's engine says of a request, step by step or in one go -> the turn so far, and the completion.

Ranks of the sampled tokens carry the bits of entropies (`vllm_entropies.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from treegrpo_cli.samplers.measures import cut_after
from treegrpo_cli.samplers.stepping import Request
from treegrpo_cli.samplers.text import turn_text
from treegrpo_cli.samplers.undrawn import Undrawn
from treegrpo_cli.samplers.vllm_entropies import entropies_in
from treegrpo_cli.types import Completion


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

    def take(self, output: Any) -> None:
        """Add what an output brings, and say why the turn ends where it does."""
        (sampled,) = output.outputs
        known = len(self.token_ids)
        for token, at in zip(sampled.token_ids, sampled.logprobs if sampled.token_ids else (), strict=True):
            self.token_ids.append(token)
            self.logprobs.append(at[token].logprob)
            self.ranks.append(at[token].rank)
            if self.undrawn:
                self.undrawn.advance(token)
        self.num_cached_tokens = output.num_cached_tokens or self.num_cached_tokens
        if output.finished:
            self.finish_reason = sampled.finish_reason
            self.stop = (sampled.stop_reason,) if isinstance(sampled.stop_reason, str) else ()
        left = cut_after(self.logprobs, self.request.params, known)
        if left is not None and (left < len(self.token_ids) or not output.finished):
            del self.token_ids[left:], self.logprobs[left:], self.ranks[left:]
            self.finish_reason, self.stop = "pruned", ()

    def completion(self, tokenizer: Any, end_ids: frozenset[int]) -> Completion:
        """The turn as it ended."""
        return Completion(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            text=turn_text(tokenizer, self.token_ids, self.stop, end_ids),
            finish_reason=self.finish_reason,
            num_cached_tokens=self.num_cached_tokens,
            entropies=entropies_in(self.ranks) if self.request.params.entropies else None,
        )
