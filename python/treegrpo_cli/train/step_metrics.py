"""What a micro-batch computed -> sums over its tokens -> the metrics of an optimizer step and of a rollout step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from treegrpo_cli.train.head import HeadResult
from treegrpo_cli.train.loss import TokenTerms
from treegrpo_cli.types import TrainBatch

MISMATCH_MEAN = "sampling/sampling_logp_difference/mean"
MISMATCH_MAX = "sampling/sampling_logp_difference/max"
"""|policy - sampling| log-probability of a token before any update: how far engine and trainer are apart."""


def token_sums(batch: TrainBatch, result: HeadResult, terms: TokenTerms, has_kl: bool) -> dict[str, Tensor]:
    """Return a micro-batch's sums over tokens, each 0-dimensional, weighted as in the loss."""
    difference = (result.logprobs - batch.sampling_logprobs).abs()
    weights = batch.weights
    sums = {
        "loss": result.loss.detach(),
        MISMATCH_MAX: difference.max(),
        "entropy": (weights * result.entropy).sum(),
        "clip_ratio/low_mean": (weights * terms.clipped_low).sum(),
        "clip_ratio/high_mean": (weights * terms.clipped_high).sum(),
        MISMATCH_MEAN: (weights * difference).sum(),
    }
    return sums | ({"kl": (weights * terms.kl).sum()} if has_kl else {})


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add the sums of another micro-batch of the same optimizer step."""
    for name, value in more.items():
        if name not in sums:
            sums[name] = value
        else:
            sums[name] = torch.maximum(sums[name], value) if name == MISMATCH_MAX else sums[name] + value


def means(sums: dict[str, Tensor], num_weighted: float) -> dict[str, float]:
    """Turn an optimizer step's sums over tokens into means, weighted as in the loss."""
    whole = ("loss", MISMATCH_MAX)
    return {name: float(value) if name in whole else float(value) / num_weighted for name, value in sums.items()}


def summary(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over the optimizer steps; the engine's mismatch is that of the first, before any update."""
    if not history:
        return {"loss": 0.0, "grad_norm": 0.0}
    mean = {name: sum(metrics[name] for metrics in history) / len(history) for name in history[0]}
    return mean | {name: history[0][name] for name in (MISMATCH_MEAN, MISMATCH_MAX)}
