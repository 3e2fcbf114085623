"""Logits, sampling log-probabilities, advantages -> loss: the clipped objective, token by token.

All functions are pure and know neither trees nor rows: they see the sampled tokens of a batch side by
side, in vectors of U entries. With rho = pi / pi_old, A the advantage, w the prefix weight,
d = log pi_ref - log pi and beta the coefficient of the KL:

    loss = -(1/Z) sum_t w_t [ surrogate(rho_t, A_t) - beta (e^d - d - 1) ]

A token's advantage enters as its positive and its negative part. A chain row has one of the two; a turn
that is computed once for several leaves has both, the sums over its leaves, and the same formula then
equals the sum over the replicated rows.

Example, with clip_low = clip_high = 0.2: ratio 1.5 with advantage 1 is worth 1.2, with advantage -1 it
is worth -1.5, and with dual_clip 1.25 only -1.25.

    >>> ratio, gain, penalty = (torch.tensor(x) for x in ([1.5, 1.5], [1.0, 0.0], [0.0, -1.0]))
    >>> clipped_surrogate(ratio, gain, penalty, clip_low=0.2, clip_high=0.2)
    tensor([ 1.2000, -1.5000])
    >>> clipped_surrogate(ratio, gain, penalty, clip_low=0.2, clip_high=0.2, dual_clip=1.25)
    tensor([ 1.2000, -1.2500])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOGIT_CHUNK = 1 << 24
"""Logits that are in float32 at a time (64 MiB) while log-probabilities are computed."""


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What the loss says of each of U sampled tokens; all [U]. Only `objective` carries a gradient.

    objective: the weighted bracket of the loss · kl: k3 estimate in nats, 0 without a reference ·
    clipped_low, clipped_high: bool, the ratio is outside the clip on the side where that stops the gradient.
    """

    objective: Tensor
    kl: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def token_terms(
    policy_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    ref_logprobs: Tensor | None = None,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    kl_coef: float = 0.0,
) -> TokenTerms:
    """Compute the terms of the loss for U tokens, each argument [U]; the loss is -(sum of `objective`) / Z.

    The old policy is the one that sampled: the ratio is exp(policy_logprobs - sampling_logprobs).
    """
    ratio = torch.exp(policy_logprobs - sampling_logprobs)
    gain, penalty = advantages.clamp(min=0), advantages.clamp(max=0)
    objective = clipped_surrogate(ratio, gain, penalty, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    kl = torch.zeros_like(policy_logprobs) if ref_logprobs is None else k3(policy_logprobs, ref_logprobs)
    with torch.no_grad():
        clipped_low = (ratio < 1 - clip_low) & (penalty < 0)
        clipped_high = (ratio > 1 + clip_high) & (gain > 0)
    return TokenTerms(weights * (objective - kl_coef * kl), kl.detach(), clipped_low, clipped_high)


def clipped_surrogate(
    ratio: Tensor,
    gain: Tensor,
    penalty: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Return min(rho, c) gain + max(rho, c) penalty, elementwise.

    c = clip(rho, 1 - clip_low, 1 + clip_high). `gain` >= 0 and `penalty` <= 0 are the positive and the
    negative part of the advantage. `dual_clip` bounds the second factor from above (Ye et al. 2020,
    "Mastering complex control in MOBA games"). The ratio needs no guard against overflow:
    log rho <= -log pi_old, which is small for a token that was drawn.
    """
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    upper = torch.maximum(ratio, clipped)
    if dual_clip is not None:
        upper = upper.clamp(max=dual_clip)
    return torch.minimum(ratio, clipped) * gain + upper * penalty


def k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return e^d - d - 1, d = log pi_ref - log pi: a never negative estimate of KL(pi || pi_ref), in nats."""
    d = ref_logprobs - policy_logprobs
    return torch.expm1(d) - d


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target and the entropy of each distribution, in nats.

    logits [..., V], any float dtype · targets [...] int64 -> two [...] tensors in float32 (float64 for
    float64 logits). The distribution is softmax(logits / temperature), the one that tokens are sampled
    from. The entropy carries no gradient. Neither pass holds more than `LOGIT_CHUNK` logits in float32.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    log_probs, entropy = _TokenLogProbs.apply(flat, targets.reshape(-1), temperature)  # type: ignore[no-untyped-call]
    return log_probs.view(targets.shape), entropy.view(targets.shape)


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(logits / temperature)[target] by chunks; the backward pass computes the softmax again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_probs, entropy, normaliser = (logits.new_empty(len(logits), dtype=wide) for _ in range(3))
        for rows in _chunks(logits):
            scaled = logits[rows].to(wide) / temperature
            normaliser[rows] = torch.logsumexp(scaled, dim=-1)
            log_probs[rows] = scaled.gather(1, targets[rows, None]).squeeze(1) - normaliser[rows]
            probabilities = torch.exp(scaled - normaliser[rows, None])
            # a masked logit of -inf has probability 0 and adds nothing to the entropy
            entropy[rows] = normaliser[rows] - torch.nansum(probabilities.mul_(scaled), dim=-1)
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normaliser = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            scaled = logits[rows].to(normaliser.dtype) / ctx.temperature
            grad = grads[0][rows, None] / ctx.temperature
            grad_scaled = torch.exp(scaled - normaliser[rows, None]).mul_(-grad)
            grad_logits[rows] = grad_scaled.scatter_add_(1, targets[rows, None], grad)
        return grad_logits, None, None


def _chunks(logits: Tensor) -> list[slice]:
    num_rows, size = len(logits), max(1, LOGIT_CHUNK // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, num_rows, size)]
