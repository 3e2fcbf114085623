"""Context tokens + seed -> Completion: the border between the trees and an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from treegrpo_cli.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    import torch

    from treegrpo_cli.models.weights import Adapter


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What an engine did in a while: `step_s` seconds in its steps, and the tokens of the turns that ended."""

    step_s: float = 0.0
    num_steps: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What an engine is started for that gets new weights while it runs: `adapter`, or all weights where it is None.

    `transfer`: the backend of vLLM's weight-transfer API by which they come from another process; empty: as a stream.
    """

    adapter: Adapter | None = None
    transfer: str = ""


class Sampler(Protocol):
    """Samples turns for any number of coroutines at once, and takes new weights between rollouts.

    `samplers.stepping.SteppedSampler` has what every engine needs.

    A result depends on context, params, seed and weights only (float32 on CPU), never on what else is
    in the batch. `sample` may be called from one event loop after another, never from two at a time.
    """

    name: str
    policy_version: int
    max_model_len: int
    """Longest context plus turn, in tokens."""

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample one turn behind `context`. Cancelling the coroutine drops the request."""
        ...

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Take a whole `state_dict()`'s items (tied tensors under every name) and forget cached prefixes."""
        ...

    @property
    def takes_adapter(self) -> bool:
        """Whether it computes the model as it is stored and an adapter beside it; else adapters come merged."""
        ...

    def update_adapter(self, adapter: Adapter, policy_version: int) -> None:
        """Take a new adapter in the place of the last one, and forget cached prefixes."""
        ...

    def sleep(self) -> None:
        """Give memory back until the next update, where this engine can. Only between rollouts."""
        ...

    def prefix_cache_hit_ratio(self) -> float | None:
        """Cached over all prompt tokens since the last call; None without prompts or without such a cache."""
        ...

    def take_counts(self) -> EngineCounts:
        """Return what the engine did since the last call."""
        ...

    def close(self) -> None:
        """Free the engine; a closed sampler samples no more."""
        ...
