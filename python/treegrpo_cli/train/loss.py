"""Log-probabilities of sampled tokens -> loss: the clipped objective, token by token.

All functions are pure and know neither trees nor rows: they see the sampled tokens of a batch side
by side, in vectors of Q entries. With A the advantage, w the prefix weight, H the entropy of the
distribution that the token is from, d = log pi_ref - log pi, beta and eta the coefficients:

    loss = -(1/Z) sum_t [ v_t surrogate(rho_t, w_t A_t) - beta w_t (e^d - d - 1) + eta w_t H_t ]

The ratio rho_t = pi / pi_old is the token's own. Over a segment, a turn or a whole sequence, it is one
number for all its tokens, exp of the mean of their log pi - log pi_old: over sequences the ratio of GSPO
(Zheng et al. 2025, "Group sequence policy optimization"), over turns still local to a node of the tree.

pi_old is the policy that sampled: as the sampler computed it, or as the trainer did before its first update. Then
v_t = min(pi_old / pi_sampler, C) makes up for the difference of the two where that is asked for (truncated importance
sampling: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"); else v_t = 1.

The value of k3, e^d - d - 1, is on average KL(pi || pi_ref) where pi = pi_old, but its gradient, (1 - e^d) grad log pi,
is on average that of KL(pi_ref || pi). With `kl_ratio` the term is rho_t (e^d - d - 1), whose gradient, -rho_t d grad
log pi, is that of KL(pi || pi_ref) (DeepSeek-AI 2025, "DeepSeek-V3.2").

An advantage enters as its positive and its negative part, times w: `gain` and `penalty`. A chain row has
one of the two; a turn that is computed once for several leaves has both, the sums over its leaves, and
the same formula then equals the sum over the replicated rows.

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

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is known of Q sampled tokens before the policy is asked; all [Q].

    old_logprobs: nats, of the policy that the ratio is to; None where that is the policy that is asked, so that every
    ratio is 1 · gain >= 0, penalty <= 0: the parts of the advantage, weighted · weights: the prefix weight ·
    segment: int64, tokens with equal numbers share one ratio; without it each has its own ·
    ref_logprobs, sampling_logprobs: of the frozen reference and of the sampler.
    """

    old_logprobs: Tensor | None
    gain: Tensor
    penalty: Tensor
    weights: Tensor
    segment: Tensor | None = None
    ref_logprobs: Tensor | None = None
    sampling_logprobs: Tensor | None = None

    def part(self, which: slice | Tensor) -> Targets:
        """Return the same of some of the tokens, by place or by number; a segment must not be cut."""

        def cut(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[which]

        return Targets(
            cut(self.old_logprobs),
            self.gain[which],
            self.penalty[which],
            self.weights[which],
            cut(self.segment),
            cut(self.ref_logprobs),
            cut(self.sampling_logprobs),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TokenTerms:
    """What the loss says of each of Q sampled tokens; all [Q]. Only `objective` carries a gradient.

    objective: the bracket of the loss · kl: k3 estimate in nats, 0 without a reference ·
    clipped_low, clipped_high: bool, the ratio is outside the clip on the side where that stops the gradient ·
    importance: the weight v, None without · truncated: bool, whether it stands at its bound.
    """

    objective: Tensor
    kl: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    importance: Tensor | None = None
    truncated: Tensor | None = None


def token_terms(
    policy_logprobs: Tensor,
    entropy: Tensor,
    targets: Targets,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    importance_clip: float | None = None,
    kl_coef: float = 0.0,
    kl_ratio: bool = False,
    entropy_coef: float = 0.0,
) -> TokenTerms:
    """Compute the terms of the loss for Q tokens, from [Q] each; the loss is -(sum of `objective`) / Z.

    `entropy` is of each token's distribution, in nats; without a coefficient it is left out of the graph.
    `importance_clip` is C of the weights v; it needs the sampler's log-probabilities.
    """
    ratio = torch.exp(_log_ratio(policy_logprobs, targets))
    gain, penalty, weights = targets.gain, targets.penalty, targets.weights
    objective = clipped_surrogate(ratio, gain, penalty, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    importance, truncated = _importance(policy_logprobs, targets, importance_clip)
    if importance is not None:
        objective = importance * objective
    kl = torch.zeros_like(policy_logprobs)
    if targets.ref_logprobs is not None:
        kl = k3(policy_logprobs, targets.ref_logprobs)
        objective = objective - kl_coef * weights * (ratio * kl if kl_ratio else kl)
    if entropy_coef > 0:
        objective = objective + entropy_coef * weights * entropy
    with torch.no_grad():
        clipped_low = (ratio < 1 - clip_low) & (penalty < 0)
        clipped_high = (ratio > 1 + clip_high) & (gain > 0)
    return TokenTerms(objective, kl.detach(), clipped_low, clipped_high, importance, truncated)


def _log_ratio(policy_logprobs: Tensor, targets: Targets) -> Tensor:
    """log rho [Q]: of each token, or the mean over its segment."""
    log_ratio = policy_logprobs - _old(policy_logprobs, targets)
    if targets.segment is None:
        return log_ratio
    place, nothing = _places(targets.segment), torch.zeros_like(log_ratio)
    total, size = (nothing.index_add(0, place, values) for values in (log_ratio, torch.ones_like(nothing)))
    return (total / size.clamp(min=1))[place]


def _places(segment: Tensor) -> Tensor:
    """Number the segments from 0 on, [Q]; how many there are no device is asked, as `torch.unique` would."""
    order = segment.argsort()
    is_other = segment[order].diff() != 0
    return torch.empty_like(segment).scatter_(0, order, functional.pad(is_other.cumsum(0), (1, 0)))


def _old(policy_logprobs: Tensor, targets: Targets) -> Tensor:
    return policy_logprobs.detach() if targets.old_logprobs is None else targets.old_logprobs


def _importance(policy_logprobs: Tensor, targets: Targets, bound: float | None) -> tuple[Tensor | None, Tensor | None]:
    """The weights min(pi_old / pi_sampler, bound) and whether each is at the bound; nothing without a bound."""
    if bound is None:
        return None, None
    if targets.sampling_logprobs is None:
        raise ValueError("importance_clip: expected the sampler's log-probabilities, got none")
    weight = torch.exp(_old(policy_logprobs, targets) - targets.sampling_logprobs)
    return weight.clamp(max=bound), weight > bound


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
