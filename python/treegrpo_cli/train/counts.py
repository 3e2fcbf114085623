"""The layouts of a step, a model -> the counts that costs of attention paths are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT, Layout, MicroBatch
from treegrpo_cli.train.batch import padded_tokens

CACHED_TOKENS = 1024
"""Tokens of one forward from where on a CPU gains nothing by more: their activations leave its cache."""


@dataclass(frozen=True)
class ModelShape:
    """Floating point operations of a forward: `token` for each token, `pair` for each pair that attends."""

    token: float
    pair: float
    num_layers: int

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Read the shape off a causal LM; of experts, count those that a token goes through.

        Layers without attention, or with one of their own, count no pairs.
        """
        config = model.config.get_text_config()
        embeddings = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
        weights = [w for w in model.parameters() if w.dim() >= 2 and id(w) not in embeddings]
        layers = layer_configs(config)
        num_experts = _number(layers[0], "num_experts") or _number(layers[0], "num_local_experts") or 1
        chosen = _number(layers[0], "num_experts_per_tok") or 1
        used = sum(w.numel() * (chosen / num_experts if w.shape[0] == num_experts else 1.0) for w in weights)
        return cls(2.0 * used, sum(4.0 * _attention_width(layer) for layer in layers), len(layers))


def layer_configs(config: Any) -> list[Any]:
    """Return what configures each layer of a text model: the model's own configuration, where all are alike."""
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * max(1, _number(config, "num_hidden_layers"))


def _attention_width(config: Any) -> int:
    """Heads times their size, 0 where a layer has none."""
    heads = _number(config, "num_attention_heads")
    return heads * _number(config, "head_dim") or (_number(config, "hidden_size") if heads else 0)


def _number(config: Any, name: str) -> int:
    """A whole number of a configuration, 0 where it has none of this name: some give one for each layer."""
    value = getattr(config, name, 0)
    return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class Step:
    """What planner and metrics know of the layouts of a rollout step; all counts in tokens or pairs of tokens."""

    unique_tokens: int
    split_tokens: int
    chain_tokens: int
    padded_tokens: int
    pairs: float
    chain_pairs: float
    num_parts: int
    num_edges: int
    longest_path: int

    @classmethod
    def of(cls, layouts: Sequence[Layout], max_tokens: int, device: torch.device) -> Step:
        """Count in shared layouts; `max_tokens` is the budget of a micro-batch."""
        paths = [layout.path_tokens.astype(np.int64) for layout in layouts]
        budgets = [forward_tokens(layout, max_tokens, device) for layout in layouts]
        micros = [
            micro for layout, budget in zip(layouts, budgets, strict=True) for micro in layout.micro_batches(budget)
        ]
        return cls(
            unique_tokens=sum(len(layout.token_ids) for layout in layouts),
            split_tokens=sum(len(micro.token_ids) for micro in micros),
            chain_tokens=sum(int(path.sum()) for path in paths),
            padded_tokens=sum(padded_tokens(path.tolist(), _cached(path, max_tokens, device)) for path in paths),
            pairs=sum(float((micro.positions.astype(np.int64) + 1).sum()) for micro in micros),
            chain_pairs=sum(float((path * (path + 1) / 2).sum()) for path in paths),
            num_parts=sum(len(micro.run_start) - 1 + len(micro.key_start) for micro in micros),
            num_edges=sum(len(micro.edge_start) - 1 for micro in micros),
            longest_path=max((int(path.max(initial=0)) for path in paths), default=0),
        )

    @classmethod
    def of_one(cls, micro: MicroBatch) -> Step:
        """Count in a single micro-batch, as it is computed: shared, or as rows."""
        positions = micro.positions.astype(np.int64) + 1
        paths = positions[micro.run_start[1:].astype(np.int64) - 1]
        longest, num_tokens = int(paths.max(initial=0)), len(micro.token_ids)
        return cls(
            unique_tokens=num_tokens,
            split_tokens=num_tokens,
            chain_tokens=int(paths.sum()),
            padded_tokens=longest * len(paths),
            pairs=float(positions.sum()),
            chain_pairs=float((paths * (paths + 1) / 2).sum()),
            num_parts=len(micro.run_start) - 1 + len(micro.key_start),
            num_edges=len(micro.edge_start) - 1,
            longest_path=longest,
        )


def forward_tokens(layout: Layout, max_tokens: int, device: torch.device) -> int:
    """Return the budget of a layout's micro-batches: `max_tokens`; on a CPU what its cache holds, trees kept whole."""
    starts = np.flatnonzero(layout.parent_token == NO_PARENT)
    return _cached(np.diff(starts, append=len(layout.token_ids)), max_tokens, device)


def _cached(sizes: NDArray[np.int64], max_tokens: int, device: torch.device) -> int:
    if device.type != "cpu":
        return max_tokens
    return min(max_tokens, max(CACHED_TOKENS, int(sizes.max(initial=0))))
