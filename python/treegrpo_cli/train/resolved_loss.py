"""`[loss]` + how engine and trainer differ -> the loss as it is computed, nothing left to choose.

Two programs that round to bfloat16 differ on every token, most where it is unlikely. A ratio to the sampler's
log-probabilities takes that for a change of the policy: it clips tokens that no update has moved. So the ratio is to
the trainer's own policy there, the difference to the sampler is a weight of its own, bounded, and the ratio is bounded
on the side where the clip leaves it open. In float32 the two agree to rounding, and nothing is computed twice.

Trees that were begun by older weights (`scale.max_staleness`) differ in the same way, in any dtype, and by more: the
clip holds the update to the policy that it starts from, and the age is the importance weights'.

Source: truncated importance sampling (Yao et al. 2025); the decoupled objective of AReaL (arXiv 2505.24298), section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from treegrpo_cli.config import Config, LossConfig, ModelConfig

IMPORTANCE_CLIP, DUAL_CLIP = 2.0, 3.0
"""Of `auto` where the dtype rounds; verl's `rollout_is_threshold` and `clip_ratio_c` have the same values."""


@dataclass(frozen=True, slots=True)
class ResolvedLoss:
    """The settings of `LossConfig`; `importance_clip` and `dual_clip` are None where they are off.

    recomputes: whether the old policy is the trainer's, before the first update of a step, or the sampler's.
    """

    ratio: str
    recomputes: bool
    importance_clip: float | None
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_coef: float
    kl_ratio: bool
    entropy_coef: float
    denominator: str
    denominator_constant: float
    prefix_weight: float


def resolved_loss(loss: LossConfig, dtype: torch.dtype, max_staleness: int = 0) -> ResolvedLoss:
    """Resolve what is `auto` for engine and trainer of this dtype, and trees up to so many steps old.

    >>> bf16 = resolved_loss(LossConfig(), torch.bfloat16)
    >>> bf16.recomputes, bf16.importance_clip, bf16.dual_clip
    (True, 2.0, 3.0)
    >>> exact = resolved_loss(LossConfig(), torch.float32)
    >>> exact.recomputes, exact.importance_clip, exact.dual_clip
    (False, None, None)
    >>> stale = resolved_loss(LossConfig(), torch.float32, max_staleness=1)
    >>> stale.recomputes, stale.importance_clip, stale.dual_clip
    (True, 2.0, None)

    Without weights, the ratio itself must make up for the age:

    >>> resolved_loss(LossConfig(importance_clip=0), torch.bfloat16, max_staleness=1).recomputes
    False
    """
    rounds = dtype not in (torch.float32, torch.float64)
    differs = rounds or max_staleness > 0
    weights = loss.importance_clip != 0 if loss.importance_clip != "auto" else max_staleness > 0
    asks_for_more = weights if max_staleness else rounds or weights
    recomputes = loss.old_logprobs == "recomputed" or (loss.old_logprobs == "auto" and asks_for_more)
    return ResolvedLoss(
        ratio=loss.ratio,
        recomputes=recomputes,
        importance_clip=_bound(loss.importance_clip, IMPORTANCE_CLIP if differs and recomputes else None),
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        dual_clip=_bound(loss.dual_clip, DUAL_CLIP if rounds else None),
        kl_coef=loss.kl_coef,
        kl_ratio=loss.kl_ratio,
        entropy_coef=loss.entropy_coef,
        denominator=loss.denominator,
        denominator_constant=loss.denominator_constant,
        prefix_weight=loss.prefix_weight,
    )


def _bound(given: float | str, automatic: float | None) -> float | None:
    return automatic if isinstance(given, str) else given or None


def unread_settings(config: Config) -> list[str]:
    """Return a line for each setting that is given beside others under which nothing reads it.

    >>> unread_settings(Config(loss=LossConfig(denominator_constant=512.0)))
    ['warning: loss.denominator_constant = 512 is not read: loss.denominator is "token-mean", not "constant"']
    >>> unread_settings(Config(model=ModelConfig(lora_alpha=64.0)))
    ['warning: model.lora_alpha is not read: model.lora_rank is 0, so that all weights are trained']
    """
    lines, loss = [], config.loss
    lines += [
        f"warning: model.{name} is not read: model.lora_rank is 0, so that all weights are trained"
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules")
        if not config.model.lora_rank and getattr(config.model, name) != getattr(ModelConfig(), name)
    ]
    if loss.denominator != "constant" and loss.denominator_constant != LossConfig().denominator_constant:
        lines.append(
            f"warning: loss.denominator_constant = {loss.denominator_constant:g} is not read: "
            f'loss.denominator is "{loss.denominator}", not "constant"'
        )
    if loss.kl_ratio and loss.kl_coef == 0:
        lines.append("warning: loss.kl_ratio = true is not read: loss.kl_coef is 0")
    return lines
