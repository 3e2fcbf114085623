"""Distributions and log-probabilities of a turn's tokens -> their entropy, and where the turn is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from treegrpo_cli.types import SamplingParams

CHUNK_ENTRIES = 1 << 24
"""Of a batch times the vocabulary: what the entropies of so many take beside the logits is 128 MiB."""


def entropies_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats of each distribution, [B] float32; `logits` [B, V], log-probabilities or shifted ones.

    >>> entropies_of(torch.tensor([[0.0, 0.0, float("-inf")], [5.0, float("-inf"), float("-inf")]])).tolist()
    [0.6931471824645996, 0.0]
    """
    chunks = torch.split(logits, max(1, CHUNK_ENTRIES // max(1, logits.shape[1])))
    return torch.cat([torch.special.entr(chunk.float().softmax(dim=-1)).sum(dim=-1) for chunk in chunks])


def cut_after(logprobs: Sequence[float], params: SamplingParams, known: int = 0) -> int | None:
    """Return how many tokens are left of a turn that is cut by `params.stop_below`, None where it is not.

    Only full windows count. The first `known` tokens are not looked at again.

    >>> cut_after([-1.0, -4.0, -4.0, -4.0], SamplingParams(9, stop_below=-3.0, window=2))
    3
    """
    if params.stop_below is None:
        return None
    for end in range(max(known + 1, params.window), len(logprobs) + 1):
        if math.fsum(logprobs[end - params.window : end]) < params.stop_below * params.window:
            return end
    return None
