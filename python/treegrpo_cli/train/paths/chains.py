"""Every leaf a padded row: what the library computes itself, and what every other path is checked against."""

from __future__ import annotations

import torch
from torch import Tensor

from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.paths.base import Subject, register
from treegrpo_cli.train.paths.one_forward import OneForward
from treegrpo_cli.types import TrainBatch


@register
class Chains(OneForward):
    """Shared prefixes are computed again in every row."""

    name = "chains"
    shares = False

    def refusal(self, subject: Subject) -> None:
        """See `AttentionPath`: rows train whatever the library computes."""

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `AttentionPath`."""
        return True

    def cost(self, step: Step, model: ModelShape, device: torch.device) -> float:
        """See `AttentionPath`."""
        return step.padded_tokens * model.token + step.chain_pairs * model.pair

    def computed_tokens(self, step: Step) -> int:
        """See `AttentionPath`."""
        return step.chain_tokens

    def predictor_states(self, decoder: Decoder, batch: TrainBatch, embeds: Tensor | None = None) -> Tensor:
        """See `OneForward`."""
        return decoder.row_states(batch, embeds)
