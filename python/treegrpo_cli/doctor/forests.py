"""Tokens -> the forests that checks compute, and how they are laid out for a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.train.batch import layouts, to_batch
from treegrpo_cli.types import NodeStatus, TrainBatch

WHOLE = 2**40
"""Tokens of a micro-batch: all of a forest."""

FIRST_TOKEN, LAST_TOKEN = 8, 300
"""Tokens that mean nothing in particular to the tiny model's tokenizer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A node of a tree: its parent's number in the tree (None for the prompt), its tokens, and what the sampler said
    of them (None: the policy did not sample them)."""

    parent: int | None
    token_ids: Sequence[int]
    logprobs: Sequence[float] | None = None


def random_trees(seed: int, prompt_tokens: int, turn_tokens: int) -> list[list[Turn]]:
    """Draw two trees of one prompt that branch at every depth: three leaves, and one of each kind of relation."""
    draw = np.random.default_rng(seed)
    prompt = draw.integers(FIRST_TOKEN, LAST_TOKEN, prompt_tokens).tolist()

    def turn(parent: int) -> Turn:
        token_ids = draw.integers(FIRST_TOKEN, LAST_TOKEN, turn_tokens).tolist()
        return Turn(parent, token_ids, [-1.0] * turn_tokens)

    return [[Turn(None, prompt), turn(0), turn(1), turn(1), turn(0), turn(2)] for _ in range(2)]


def batch_of(trees: Sequence[Sequence[Turn]], device: torch.device, *, shared: bool) -> TrainBatch:
    """Lay all trees out as one micro-batch; leaves are rewarded by turns with 0 and 1."""
    rows = [(number, turn) for number, tree in enumerate(trees) for turn in tree]
    first = np.cumsum([0, *(len(tree) for tree in trees)])
    parent = [NO_PARENT if turn.parent is None else int(first[tree]) + turn.parent for tree, turn in rows]
    inner = set(parent)
    rewards = [np.nan if number in inner else float(number % 2) for number in range(len(rows))]
    ids = np.concatenate([turn.token_ids for _, turn in rows])
    logprobs = np.concatenate([turn.logprobs or np.zeros(len(turn.token_ids)) for _, turn in rows])
    forest = Forest.from_columns(
        prompt=np.zeros(len(trees), dtype=np.uint32),
        parent=np.array(parent, dtype=np.uint32),
        tree=np.array([tree for tree, _ in rows], dtype=np.uint32),
        status=np.array([NodeStatus.DONE if np.isfinite(r) else NodeStatus.OPEN for r in rewards], dtype=np.uint8),
        reward=np.array(rewards),
        token_start=np.cumsum([0, *(len(turn.token_ids) for _, turn in rows)], dtype=np.uint64),
        token_ids=ids.astype(np.uint32),
        sampled=np.concatenate([np.full(len(turn.token_ids), turn.logprobs is not None) for _, turn in rows]),
        logprobs=logprobs.astype(np.float32),
    )
    [layout] = layouts(forest, forest.score("grpo", {}), 1.0, 1, shared=shared)
    [micro] = layout.micro_batches(WHOLE)
    return to_batch(micro, device)
