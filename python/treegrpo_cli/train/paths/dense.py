"""Every token once under a mask of U x U: slow, for tests, and where nothing else runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treegrpo_cli.train.paths.base import register
from treegrpo_cli.train.paths.one_forward import WholeForest
from treegrpo_cli.train.visibility import masked_attention, visible
from treegrpo_cli.types import TrainBatch


@dataclass
class DensePlan:
    """Every pair of tokens under a mask: additive, since the library's slow attention misreads a boolean one."""

    batch: TrainBatch
    num_calls: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `tree_attention.Plan`."""
        tokens = torch.arange(self.batch.token_ids.shape[0], device=query.device)
        seen = visible(self.batch, window)(None, None, tokens[:, None], tokens[None])
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
        return masked_attention(query, key, value, mask, scale)


@register
class Dense(WholeForest):
    """All pairs are computed, and those that a token does not see are masked."""

    name = "dense"

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `AttentionPath`: never unasked."""
        return False

    def plan(self, batch: TrainBatch) -> DensePlan:
        """See `WholeForest`."""
        return DensePlan(batch)
