"""The shape of a step's forest + the model -> the attention path that computes it soonest, and why.

    chains        every leaf a padded row, shared prefixes computed again: the library's own attention
    runs          every token once; CPU, and CUDA in bfloat16
    flex          every token once through FlexAttention; CUDA
    dense         every token once under a mask of all pairs; any device, slow
    depth-first   every token once, a stretch at a time, with the memory of one path

The estimate counts floating point operations: products of weights for each token, attention for each pair of tokens,
and what a call costs before it computes anything. A forest goes by the path of the least estimate; trees that
exceed `train.microbatch_tokens` are cut at branches with the path above computed again, or go depth first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT, Layout
from treegrpo_cli.train.batch import padded_tokens

CALL_FLOPS = {"cpu": 4e6, "cuda": 0.0}
"""Cost of one more part of an attention, a layer: on CUDA all runs are one call."""

STRETCH_FLOPS = {"cpu": 2e7, "cuda": 1e11}
"""Cost of one more stretch, a layer: the kernels that it starts, however few tokens it has."""

CACHED_TOKENS = 1024
"""Tokens of one forward from where on a CPU gains nothing by more: their activations leave its cache."""

ADVANTAGE = 1.02
"""How much sooner than chains a tree path must be by the estimate: chains are what the library computes itself."""


@dataclass(frozen=True)
class ModelShape:
    """Floating point operations of a forward: `token` for each token, `pair` for each pair that attends."""

    token: float
    pair: float
    num_layers: int

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Read the shape off a causal LM; of experts, count those that a token goes through."""
        config = model.config.get_text_config()
        embeddings = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
        weights = [w for w in model.parameters() if w.dim() >= 2 and id(w) not in embeddings]
        num_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
        chosen = getattr(config, "num_experts_per_tok", None) or 1
        used = sum(w.numel() * (chosen / num_experts if w.shape[0] == num_experts else 1.0) for w in weights)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pair = 4.0 * config.num_hidden_layers * config.num_attention_heads * head_size
        return cls(2.0 * used, pair, config.num_hidden_layers)


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
    num_stretches: int
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
            num_stretches=sum(len(micro.edge_start) - 1 for micro in micros),
            longest_path=max((int(path.max(initial=0)) for path in paths), default=0),
        )


@dataclass(frozen=True)
class Choice:
    """An attention path, and a line that says why."""

    path: str
    reason: str


def choose(
    step: Step, model: ModelShape, device: torch.device, dtype: torch.dtype, wanted: str, refusal: str | None
) -> Choice:
    """Choose the path of a step. `wanted` is `auto` or a path; `refusal` is why the model cannot do without chains."""
    if wanted != "auto":
        return Choice(wanted, f"{_counts(step)}, as train.attention_path asks")
    if refusal is not None:
        return Choice("chains", f"{step.chain_tokens:,} tokens: {refusal}")
    whole = _whole_forest_path(device, dtype)
    if whole is None:
        return Choice("chains", f"{step.chain_tokens:,} tokens: {device.type} has no attention for trees")
    costs = {whole: _tree_cost(step, model, device), "depth-first": _stretch_cost(step, model, device)}
    path = min(costs, key=lambda name: costs[name])
    gain = _chain_cost(step, model) / costs[path] if costs[path] else 1.0
    if gain < ADVANTAGE:
        return Choice("chains", f"{step.chain_tokens:,} tokens, of which too few are shared to gain by trees")
    return Choice(path, f"{_counts(step)}, {gain:.1f} times as fast by estimate")


def forward_tokens(layout: Layout, max_tokens: int, device: torch.device) -> int:
    """Return the budget of a layout's micro-batches: `max_tokens`; on a CPU what its cache holds, trees kept whole."""
    starts = np.flatnonzero(layout.parent_token == NO_PARENT)
    return _cached(np.diff(starts, append=len(layout.token_ids)), max_tokens, device)


def _cached(sizes: NDArray[np.int64], max_tokens: int, device: torch.device) -> int:
    if device.type != "cpu":
        return max_tokens
    return min(max_tokens, max(CACHED_TOKENS, int(sizes.max(initial=0))))


def _whole_forest_path(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu":
        return "runs"
    if device.type == "cuda":
        return "runs" if dtype == torch.bfloat16 else "flex"
    return None


def _chain_cost(step: Step, model: ModelShape) -> float:
    return step.padded_tokens * model.token + step.chain_pairs * model.pair


def _tree_cost(step: Step, model: ModelShape, device: torch.device) -> float:
    overhead = CALL_FLOPS.get(device.type, 0.0) * step.num_parts * model.num_layers
    return step.split_tokens * model.token + step.pairs * model.pair + overhead


def _stretch_cost(step: Step, model: ModelShape, device: torch.device) -> float:
    overhead = STRETCH_FLOPS.get(device.type, 0.0) * step.num_stretches * model.num_layers
    return step.unique_tokens * model.token + step.pairs * model.pair + overhead


def _counts(step: Step) -> str:
    return f"{step.unique_tokens:,} tokens for {step.chain_tokens:,} of chains"
