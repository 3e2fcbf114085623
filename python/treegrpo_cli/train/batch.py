"""Forest + scores -> the layouts of optimizer steps -> micro-batches as tensors.

mini-batch    the prompts of one optimizer step, in the order in which they came: one layout of the core
micro-batch   the tokens of one forward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli._core import NO_PARENT, Forest, Layout, MicroBatch, Scores
from treegrpo_cli.types import HostColumns, TrainBatch


def layouts(
    forest: Forest,
    scores: Scores,
    prefix_weight: float,
    prompts_per_minibatch: int,
    *,
    shared: bool,
    row_mean: bool = False,
    prompts: NDArray[np.uint32] | None = None,
) -> list[Layout]:
    """Lay out the prompts of each optimizer step; the last may hold fewer. `shared` computes equal prefixes once,
    `row_mean` gives all rows the same weight.

    `prompts` are those to train on, in their order; all of the forest's by default.
    """
    if prompts is None:
        prompts = np.array(list(dict.fromkeys(forest.columns()["prompt"].tolist())), dtype=np.uint32)
    chunks = [prompts[start : start + prompts_per_minibatch] for start in range(0, len(prompts), prompts_per_minibatch)]
    return [forest.pack(scores, prefix_weight, shared=shared, row_mean=row_mean, prompts=chunk) for chunk in chunks]


def to_batch(micro: MicroBatch, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TrainBatch:
    """Put a micro-batch on a device: integers as int64, what the loss reads in `dtype`.

    Nothing here waits for the device, nor needs to while the batch is computed: plans are made of `host`.
    """

    def integers(column: NDArray[np.uint32]) -> Tensor:
        return moved(_signed(column), device)

    def numbers(column: NDArray[Any]) -> Tensor:
        return moved(torch.from_numpy(column.astype(np.float64)).to(dtype), device)

    return TrainBatch(
        token_ids=integers(micro.token_ids),
        positions=integers(micro.positions),
        parent_token=integers(micro.parent_token),
        subtree_end=integers(micro.subtree_end),
        runs=_rows(micro.run_start[:-1], micro.run_start[1:]),
        segments=_rows(micro.key_start, micro.key_end, micro.query_start, micro.query_end),
        edges=_rows(micro.edge_start[:-1], micro.edge_start[1:], _signed(micro.edge_parent)),
        max_path_tokens=int(micro.positions.max(initial=0)) + 1,
        predictors=integers(micro.predictors),
        target_row=integers(micro.target_row),
        target_ids=integers(micro.target_ids),
        sampling_logprobs=numbers(micro.logprobs),
        gain=numbers(micro.gain),
        penalty=numbers(micro.penalty),
        weights=numbers(micro.weights),
        gain_weights=numbers(micro.gain_weights),
        penalty_weights=numbers(micro.penalty_weights),
        turn=integers(micro.turn),
        row=None if micro.row is None else integers(micro.row),
        host=HostColumns(
            positions=_signed(micro.positions),
            parent_token=_signed(micro.parent_token),
            predictors=_signed(micro.predictors),
            target_row=_signed(micro.target_row),
            turn=_signed(micro.turn),
        ),
    )


def moved(column: NDArray[Any] | Tensor, device: torch.device | str) -> Tensor:
    """Put what lies on the host on a device, without waiting for it where it is CUDA's.

    The driver keeps a copy until then; other devices read the host's memory later, which may be gone.
    """
    tensor = torch.from_numpy(column) if isinstance(column, np.ndarray) else column
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def _signed(column: NDArray[np.uint32]) -> NDArray[np.int64]:
    """int64, -1 for what is above a start."""
    values = column.astype(np.int64)
    values[column == NO_PARENT] = -1
    return values


def _rows(*columns: NDArray[Any]) -> tuple[Any, ...]:
    return tuple(zip(*(column.tolist() for column in columns), strict=True))


def padded_tokens(path_tokens: Sequence[int], max_tokens: int) -> int:
    """Return the tokens that rows of these lengths take in padded micro-batches, longest first."""
    total, rows, longest = 0, 0, 0
    for length in sorted(path_tokens, reverse=True):
        if rows and longest * (rows + 1) > max_tokens:
            total, rows = total + longest * rows, 0
        longest = length if rows == 0 else longest
        rows += 1
    return total + longest * rows
