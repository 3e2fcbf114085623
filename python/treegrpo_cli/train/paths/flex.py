"""Every token once through FlexAttention; CUDA only: its backward has no kernel elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from treegrpo_cli.train.paths.base import Subject, register
from treegrpo_cli.train.paths.one_forward import WholeForest
from treegrpo_cli.train.paths.runs import VARLEN_DTYPES
from treegrpo_cli.train.tree_attention import TreeUnsupportedError, autocast
from treegrpo_cli.train.visibility import visible
from treegrpo_cli.types import TrainBatch


@dataclass
class FlexPlan:
    """FlexAttention: blocks of keys that no query of a block sees are skipped."""

    batch: TrainBatch
    num_calls: int = 0
    _masks: dict[int | None, Any] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `tree_attention.Plan`."""
        from torch.nn.attention.flex_attention import create_block_mask

        if query.requires_grad and not query.is_cuda:
            raise TreeUnsupportedError(_no_gradient(query.device))
        query, key, value = autocast(query, key, value)
        if window not in self._masks:
            length = query.shape[2]
            mask = visible(self.batch, window)
            self._masks[window] = create_block_mask(mask, None, None, length, length, device=query.device)
        attention = compiled_flex_attention() if query.is_cuda else plain_flex_attention()
        output: Tensor = attention(query, key, value, block_mask=self._masks[window], scale=scale, enable_gqa=True)
        return output.transpose(1, 2)


def plain_flex_attention() -> Any:
    """torch's FlexAttention; its plain form is slow and has no backward on CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention compiled once for all lengths: without `dynamic` every new length compiles again."""
    return torch.compile(plain_flex_attention(), dynamic=True)


def _no_gradient(device: torch.device) -> str:
    return f"FlexAttention has no gradient on {device.type}"


@register
class Flex(WholeForest):
    """On CUDA, where `runs` does not compute in the dtype."""

    name = "flex"

    def refusal(self, subject: Subject) -> str | None:
        """See `AttentionPath`."""
        return super().refusal(subject) or (None if subject.device.type == "cuda" else _no_gradient(subject.device))

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `AttentionPath`."""
        return device.type == "cuda" and dtype not in VARLEN_DTYPES

    def plan(self, batch: TrainBatch) -> FlexPlan:
        """See `WholeForest`."""
        return FlexPlan(batch)
