"""vLLM's sampler -> the entropy of each distribution that it samples from, where a token's rank would stand.

Nobody here reads ranks, and the engine brings them, step by step and request by request, to where log-probabilities
go: through asynchronous scheduling and copies from the card, with no count of our own of who was in which batch. The
bits of a float32 fit into them. What it costs is one more softmax a step; an engine that nobody asked for entropies is
left as it is.

The CPU build and older devices run the first model runner, CUDA the second: that one is written against the source of
vLLM 0.32, and no test runs it on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from treegrpo_cli.samplers.measures import entropies_of


def return_entropies(worker: Any) -> None:
    """Let a worker's sampler return entropies from now on; called in the engine."""
    from vllm.v1.sample.sampler import Sampler

    sampler = worker.model_runner.sampler
    if isinstance(sampler, Sampler):
        _watch_first(sampler)
    else:
        _watch_second(sampler)


def ranks_of(logits: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the entropies of distributions [B, V] as numbers like those ranks, [B]."""
    return entropies_of(logits).view(torch.int32).to(like.dtype)


def entropies_in(ranks: Sequence[int]) -> list[float]:
    """Return what `ranks_of` put there, nats."""
    found: list[float] = np.array(ranks, dtype=np.int64).astype(np.int32).view(np.float32).tolist()
    return found


def _watch_first(sampler: Any) -> None:
    """Of the first runner: `gather_logprobs` sees the log-probabilities of the whole vocabulary."""
    gather = sampler.gather_logprobs

    def gather_entropies(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
        tensors = gather(logprobs, num_logprobs, token_ids)
        return tensors._replace(selected_token_ranks=ranks_of(logprobs, tensors.selected_token_ranks))

    sampler.gather_logprobs = gather_entropies


def _watch_second(sampler: Any) -> None:
    """Of the second: `sample` returns the logits sampled from, a call of the sampler what goes to the requests."""
    base: Any = type(sampler)

    class Watched(base):  # type: ignore[misc]
        """The sampler that it was, and entropies."""

        def sample(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            sampled, self.sampled_from = super().sample(*args, **kwargs)
            return sampled, self.sampled_from

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            logits, self.sampled_from = self.sampled_from, None
            tensors = output.logprobs_tensors
            if tensors is not None:
                ranks = ranks_of(logits, tensors.selected_token_ranks)
                output.logprobs_tensors = tensors._replace(selected_token_ranks=ranks)
            return output

    sampler.__class__ = Watched
