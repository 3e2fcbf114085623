"""What a micro-batch computed -> sums over its tokens -> the metrics of an optimizer step and of a rollout step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from treegrpo_cli.train.head import HeadResult
from treegrpo_cli.train.loss import TokenTerms
from treegrpo_cli.train.ranks import Ranks
from treegrpo_cli.types import TrainBatch

GRAD_NORM = "grad_norm"
"""Of an optimizer step, before it is clipped."""
MISMATCH_MEAN = "sampling/sampling_logp_difference/mean"
MISMATCH_MAX = "sampling/sampling_logp_difference/max"
"""|policy - sampling| log-probability of a token before any update: how far engine and trainer are apart."""
IMPORTANCE_MEAN = "sampling/importance_sampling_ratio/mean"
IMPORTANCE_TRUNCATED = "sampling/importance_sampling_ratio/truncated"
"""The weights that make up for it, and the share of tokens whose weight `loss.importance_clip` has cut."""


def token_sums(
    batch: TrainBatch, result: HeadResult, terms: TokenTerms, before_update: Tensor, *, has_kl: bool
) -> dict[str, Tensor]:
    """Return a micro-batch's sums over tokens, each 0-dimensional, weighted as in the loss.

    before_update: the policy's log-probabilities [Q] before a step's first update, as far as they are known.
    """
    difference = (before_update - batch.sampling_logprobs).abs()
    columns = {
        "entropy": result.entropy,
        MISMATCH_MEAN: difference,
    }
    if has_kl:
        columns["kl"] = terms.kl
    if terms.importance is not None and terms.truncated is not None:
        columns |= {IMPORTANCE_MEAN: terms.importance, IMPORTANCE_TRUNCATED: terms.truncated}
    sums = {name: (batch.weights * column).sum() for name, column in columns.items()}
    return sums | {
        "loss": result.loss.detach(),
        MISMATCH_MAX: difference.max(),
        "clip_ratio/low_mean": (batch.penalty_weights * terms.clipped_low).sum(),
        "clip_ratio/high_mean": (batch.gain_weights * terms.clipped_high).sum(),
    }


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add the sums of another micro-batch of the same optimizer step."""
    for name, value in more.items():
        if name not in sums:
            sums[name] = value
        else:
            sums[name] = torch.maximum(sums[name], value) if name == MISMATCH_MAX else sums[name] + value


def over_ranks(sums: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return the same of all ranks, in float64, by one exchange; `grad_norm` is of the parts that each rank holds."""
    parts = ranks.gather(torch.stack([value.double() for value in sums.values()]))
    of = {MISMATCH_MAX: torch.amax, GRAD_NORM: torch.linalg.vector_norm}
    return {name: of.get(name, torch.sum)(part) for name, part in zip(sums, parts.unbind(dim=1), strict=True)}


def means(sums: dict[str, Tensor], num_weighted: float) -> dict[str, float]:
    """Turn an optimizer step's sums over tokens into means, weighted as in the loss; the device is read once."""
    whole = ("loss", GRAD_NORM, MISMATCH_MAX)
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    return {name: value if name in whole else value / num_weighted for name, value in values.items()}


def summary(history: Sequence[dict[str, float]], recomputes: bool) -> dict[str, float]:
    """Mean over the optimizer steps.

    The engine's mismatch is that before any update: of all tokens where they are recomputed then, else of those of
    the first optimizer step.
    """
    if not history:
        return {"loss": 0.0, GRAD_NORM: 0.0}
    mean = {name: sum(metrics[name] for metrics in history) / len(history) for name in history[0]}
    if recomputes:
        return mean | {MISMATCH_MAX: max(metrics[MISMATCH_MAX] for metrics in history)}
    return mean | {name: history[0][name] for name in (MISMATCH_MEAN, MISMATCH_MAX)}
