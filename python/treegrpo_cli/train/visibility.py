"""TrainBatch -> which tokens each sees: as a rule, as the tokens of a path, and the masks that say so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from treegrpo_cli.types import TrainBatch


def visible(batch: TrainBatch, window: int | None) -> Any:
    """Return the rule `sees(batch, head, query, key)`: k <= q < subtree_end[k], and within the window of depths."""
    subtree_end, positions = batch.subtree_end, batch.positions

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        below = (key <= query) & (query < subtree_end[key])
        return below if window is None else below & (positions[query] - positions[key] < window)

    return sees


def run_paths(batch: TrainBatch) -> list[Tensor]:
    """Return, for each run, the tokens from its root to its end: int64 on the CPU."""
    parent = batch.parent_token.cpu()
    paths: list[Tensor] = []
    run_of: dict[int, int] = {}
    for number, (start, end) in enumerate(batch.runs):
        above = int(parent[start])
        own = torch.arange(start, end)
        if above >= 0:
            outer = paths[run_of[above]]
            own = torch.cat([outer[: int(batch.positions[above]) + 1], own])
        paths.append(own)
        run_of.update(dict.fromkeys(range(start, end), number))
    return paths


def lower_right_mask(query: Tensor, num_keys: int, window: int | None) -> Tensor:
    """The additive causal mask [q, k] of the last q of `num_keys` tokens, each of which sees `window` of them."""
    num_queries = query.shape[2]
    tokens = torch.arange(num_keys, device=query.device)
    distance = tokens[num_keys - num_queries :, None] - tokens
    unseen = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill_(unseen, float("-inf"))


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[1, H, q, D], [1, K, k, D] and an additive mask [q, k] -> [1, q, H, D]."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)
