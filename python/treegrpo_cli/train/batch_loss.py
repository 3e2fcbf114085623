"""A micro-batch + what its policies say of its targets -> its part of an optimizer step's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from treegrpo_cli._core import Layout
from treegrpo_cli.train.head import Which
from treegrpo_cli.train.loss import Targets, TokenTerms, token_terms
from treegrpo_cli.train.paths import AttentionPath
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.resolved_loss import ResolvedLoss
from treegrpo_cli.types import TrainBatch


def denominator(settings: ResolvedLoss, layout: Layout) -> float:
    """Return Z of a mini-batch: its tokens, its rows, or a constant for each of these."""
    num_rows = len(layout.path_tokens)
    match settings.denominator:
        case "token-mean":
            return layout.weighted_tokens
        case "sequence-mean":  # each row's weights add up to 1
            return num_rows
        case _:
            return settings.denominator_constant * num_rows


class BatchLoss:
    """The loss of a micro-batch as a function of its targets' log-probabilities and entropies.

    `z`: the denominator of the whole mini-batch · `recomputed` [Q]: the policy's log-probabilities before any update,
    None where this is the first. The reference is asked at once, on the same path.
    """

    def __init__(
        self,
        settings: ResolvedLoss,
        policy: Policy,
        batch: TrainBatch,
        path: AttentionPath,
        z: float,
        recomputed: Tensor | None = None,
    ) -> None:
        self._settings, self._z = settings, z
        self._targets = Targets(
            old_logprobs=recomputed if settings.recomputes else batch.sampling_logprobs,
            gain=batch.gain,
            penalty=batch.penalty,
            weights=batch.weights,
            segment={"token": None, "turn": batch.turn, "sequence": batch.row}[settings.ratio],
            ref_logprobs=policy.ref_log_probs(batch, path) if settings.kl_coef > 0 else None,
            sampling_logprobs=batch.sampling_logprobs,
        )

    def objective(self, logprobs: Tensor, entropy: Tensor, which: Which) -> Tensor:
        """See `head.Objective`."""
        return -self._terms(logprobs, entropy, self._targets.part(which)).objective.sum() / self._z

    @torch.no_grad()
    def terms(self, logprobs: Tensor, entropy: Tensor) -> TokenTerms:
        """Return the terms of all targets, without a graph."""
        return self._terms(logprobs, entropy, self._targets)

    def _terms(self, logprobs: Tensor, entropy: Tensor, targets: Targets) -> TokenTerms:
        return token_terms(
            logprobs,
            entropy,
            targets,
            clip_low=self._settings.clip_low,
            clip_high=self._settings.clip_high,
            dual_clip=self._settings.dual_clip,
            importance_clip=self._settings.importance_clip,
            kl_coef=self._settings.kl_coef,
            kl_ratio=self._settings.kl_ratio,
            entropy_coef=self._settings.entropy_coef,
        )
