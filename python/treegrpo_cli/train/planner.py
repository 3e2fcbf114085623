"""The counts of a step's forest + the model -> the attention path that computes it soonest, and why.

The estimate counts floating point operations: products of weights for each token, attention for each pair of tokens,
and what a call costs before it computes anything. A forest goes by the path of the least estimate; trees that
exceed `train.microbatch_tokens` are cut at branches with the path above computed again, or go depth first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from treegrpo_cli.train import paths
from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.paths import AttentionPath

ADVANTAGE = 1.02
"""How much sooner than chains a tree path must be by the estimate: chains are what the library computes itself."""


@dataclass(frozen=True)
class Choice:
    """An attention path, and a line that says why."""

    path: AttentionPath
    reason: str


def choose(
    step: Step, model: ModelShape, device: torch.device, dtype: torch.dtype, wanted: str, refusals: Mapping[str, str]
) -> Choice:
    """Choose the path of a step. `wanted` is `auto` or a path's name; `refusals` say, by name, which cannot train."""
    if wanted != "auto":
        return Choice(paths.named(wanted), f"{_counts(step)}, as train.attention_path asks")
    chains = paths.reference_path()
    offered = [path for path in paths.registered() if path.shares and path.is_offered(device, dtype)]
    able = [path for path in offered if path.name not in refusals]
    if not able:
        reason = refusals[offered[0].name] if offered else f"{device.type} has no attention for trees"
        return Choice(chains, f"{step.chain_tokens:,} tokens: {reason}")
    costs = {path.name: path.cost(step, model, device) for path in able}
    path = min(able, key=lambda path: costs[path.name])
    gain = chains.cost(step, model, device) / costs[path.name] if costs[path.name] else 1.0
    if gain < ADVANTAGE:
        return Choice(chains, f"{step.chain_tokens:,} tokens, of which too few are shared to gain by trees")
    return Choice(path, f"{_counts(step)}, {gain:.1f} times as fast by estimate")


def _counts(step: Step) -> str:
    return f"{step.unique_tokens:,} tokens for {step.chain_tokens:,} of chains"
