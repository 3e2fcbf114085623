"""TrainBatch -> which tokens each sees: as a rule, as the tokens of a path, by blocks, and the masks that say so."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


def run_paths(batch: TrainBatch) -> list[NDArray[np.int64]]:
    """Return, for each run, the tokens from its root to its end."""
    parent, positions = batch.host.parent_token, batch.host.positions
    starts = [start for start, _ in batch.runs]
    paths: list[NDArray[np.int64]] = []
    for start, end in batch.runs:
        own = np.arange(start, end)
        above = int(parent[start])
        if above >= 0:
            outer = paths[bisect_right(starts, above) - 1]
            own = np.concatenate([outer[: positions[above] + 1], own])
        paths.append(own)
    return paths


def pairs_of_blocks(batch: TrainBatch, window: int | None, size: int) -> NDArray[np.int64]:
    """Count the pairs that are seen between each `size` queries and each `size` keys, [blocks, blocks].

    A token sees of its own run what precedes it, and of a segment above all; of both the end that its window reaches.
    """
    positions = batch.host.positions
    num_blocks = -(-len(positions) // size)
    counts = np.zeros((num_blocks, num_blocks), dtype=np.int64)
    own = ((start, end, start, end) for start, end in batch.runs)
    for key_start, key_end, start, end in (*own, *batch.segments):
        queries = np.arange(start, end)
        last, first = np.minimum(queries + 1, key_end), np.full(len(queries), key_start)
        if window is not None:
            first += np.maximum(positions[queries] - positions[key_start] - window + 1, 0)
        for block in range(key_start // size, -(-key_end // size)):
            seen = np.minimum(last, (block + 1) * size) - np.maximum(first, block * size)
            counts[:, block] += np.bincount(queries // size, np.maximum(seen, 0), num_blocks).astype(np.int64)
    return counts


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
