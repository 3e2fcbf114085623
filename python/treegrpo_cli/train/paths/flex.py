"""Every token once through FlexAttention; CUDA only: its backward has no kernel elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli.train.batch import moved
from treegrpo_cli.train.paths.base import Subject, register
from treegrpo_cli.train.paths.one_forward import WholeForest
from treegrpo_cli.train.paths.runs import VARLEN_DTYPES
from treegrpo_cli.train.tree_attention import TreeUnsupportedError, autocast
from treegrpo_cli.train.visibility import pairs_of_blocks, visible
from treegrpo_cli.types import TrainBatch

BLOCK = 128
"""Queries and keys of a block, as the kernel has them: blocks of which no pair is seen are skipped."""

DISABLING = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
"""Variables of the environment with which torch leaves FlexAttention as it is: all pairs, without a word."""

COMPILE_OPTIONS: dict[str, Any] = {
    "dynamic": True,
    "fullgraph": True,
    "recompile_limit": 64,
    "isolate_recompiles": True,
}
"""Compiled for all lengths: without `dynamic` each new one compiles again. What is compiled once for each are windows,
head sizes, dtypes, and forwards with and without a gradient: more than the 8 times after which torch by default
computes all pairs, slowly and without a word. With `fullgraph` it raises there."""


@dataclass
class FlexPlan:
    """FlexAttention: blocks of keys that no query of a block sees are skipped."""

    batch: TrainBatch
    num_calls: int = 0
    _masks: dict[int | None, Any] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `tree_attention.Plan`."""
        if query.requires_grad and not query.is_cuda:
            raise TreeUnsupportedError(_no_gradient(query.device))
        query, key, value = autocast(query, key, value)
        if window is not None and window >= self.batch.max_path_tokens:
            window = None
        if window not in self._masks:
            self._masks[window] = block_mask(self.batch, window)
        attention = compiled_flex_attention() if query.is_cuda else plain_flex_attention()
        try:
            output: Tensor = attention(query, key, value, block_mask=self._masks[window], scale=scale, enable_gqa=True)
        except _recompiled_too_often():
            number = COMPILE_OPTIONS["recompile_limit"]
            raise TreeUnsupportedError(f"FlexAttention was compiled {number} times and asks for more") from None
        return output.transpose(1, 2)


def block_mask(batch: TrainBatch, window: int | None, size: int = BLOCK) -> Any:
    """Return the BlockMask of a batch, from its runs: torch's `create_block_mask` computes every pair of tokens."""
    from torch.nn.attention.flex_attention import BlockMask

    device, length = batch.token_ids.device, len(batch.host.positions)
    counts = pairs_of_blocks(batch, window, size)
    columns = (*_ordered((counts > 0) & (counts < size * size)), *_ordered(counts == size * size))
    number, index, full_number, full_index = (moved(column, device) for column in columns)
    lengths, sees = (length, length), visible(batch, window)
    return BlockMask.from_kv_blocks(number, index, full_number, full_index, size, sees, lengths)


def _ordered(is_chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each block of queries, how many blocks of keys are chosen, and which, in front of the others; [1, 1, ..]."""
    chosen = np.argsort(~is_chosen, axis=1, kind="stable")
    return is_chosen.sum(axis=1)[None, None].astype(np.int32), chosen[None, None].astype(np.int32)


def plain_flex_attention() -> Any:
    """torch's FlexAttention; its plain form is slow and has no backward on CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention, compiled."""
    return torch.compile(plain_flex_attention(), **COMPILE_OPTIONS)


def _recompiled_too_often() -> type[Exception]:
    from torch._dynamo.exc import FailOnRecompileLimitHit  # 3 s, and named in an except clause only when needed

    return FailOnRecompileLimitHit


def _no_gradient(device: torch.device) -> str:
    return f"FlexAttention has no gradient on {device.type}"


@register
class Flex(WholeForest):
    """On CUDA, where `runs` does not compute in the dtype."""

    name = "flex"

    def refusal(self, subject: Subject) -> str | None:
        """See `AttentionPath`."""
        if subject.device.type != "cuda":
            return super().refusal(subject) or _no_gradient(subject.device)
        found = [name for name in DISABLING if os.environ.get(name) == "1"]
        return super().refusal(subject) or (
            f"{found[0]} = 1 keeps FlexAttention from being compiled" if found else None
        )

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `AttentionPath`."""
        return device.type == "cuda" and dtype not in VARLEN_DTYPES

    def plan(self, batch: TrainBatch) -> FlexPlan:
        """See `WholeForest`."""
        return FlexPlan(batch)
