"""Chain rows -> mini-batches by prompts -> TrainBatch micro-batches by tokens.

The rows of one rollout step, as the core's `chain_rows` gives them:

    mini-batch    the prompts of one optimizer step, in the order in which they came
    micro-batch   rows of one forward, of similar length, padded on the right
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from treegrpo_cli.types import TrainBatch


class ChainRows(Protocol):
    """One row a scored leaf, flat over tokens; the core's class of this name, or anything of its shape.

    row_start u64 [B+1]; input_ids u32 [U], loss_mask bool [U], logprobs f32 [U] in nats, advantages
    f32 [U], weights f32 [U]; group u32 [B], the prompt of each row.
    """

    @property
    def row_start(self) -> NDArray[np.uint64]: ...
    @property
    def input_ids(self) -> NDArray[np.uint32]: ...
    @property
    def loss_mask(self) -> NDArray[np.bool_]: ...
    @property
    def logprobs(self) -> NDArray[np.float32]: ...
    @property
    def advantages(self) -> NDArray[np.float32]: ...
    @property
    def weights(self) -> NDArray[np.float32]: ...
    @property
    def group(self) -> NDArray[np.uint32]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One root-to-leaf path: views of T tokens into the flat arrays."""

    input_ids: NDArray[np.uint32]
    loss_mask: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    advantages: NDArray[np.float32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained(self) -> NDArray[np.bool_]:
        """[T] True on trained tokens: sampled, and with a token in front that predicts them."""
        mask = self.loss_mask.copy()
        mask[:1] = False
        return mask


Prompt = list[Row]
"""The rows of one prompt."""


def rows_by_prompt(parts: Sequence[ChainRows]) -> list[Prompt]:
    """Split rows at their prompts, in order of first appearance; a group is a prompt within its part only."""
    prompts: dict[tuple[int, int], Prompt] = {}
    for number, part in enumerate(parts):
        input_ids, loss_mask, logprobs = part.input_ids, part.loss_mask, part.logprobs
        advantages, weights = part.advantages, part.weights
        starts = part.row_start.tolist()
        for group, start, end in zip(part.group.tolist(), starts[:-1], starts[1:], strict=True):
            t = slice(start, end)
            row = Row(input_ids[t], loss_mask[t], logprobs[t], advantages[t], weights[t])
            prompts.setdefault((number, group), []).append(row)
    return list(prompts.values())


def minibatches(prompts: Sequence[Prompt], num_prompts: int) -> Iterator[list[Row]]:
    """Yield the rows of `num_prompts` prompts at a time; the last may hold fewer."""
    for start in range(0, len(prompts), num_prompts):
        yield [row for prompt in prompts[start : start + num_prompts] for row in prompt]


def weighted_tokens(rows: Sequence[Row]) -> float:
    """Return the sum of the weights of the trained tokens: Z of the token mean."""
    return float(sum(row.weights[row.trained].sum(dtype=np.float64) for row in rows))


def microbatches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Yield rows, longest first, as many as fit `max_tokens` with their padding; a longer row goes alone."""
    batch: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad(rows: Sequence[Row], device: torch.device | str = "cpu") -> TrainBatch:
    """Lay rows side by side, padded on the right with zeros that nothing attends to and nothing trains on."""
    length = max(len(row) for row in rows)

    def table(columns: Sequence[NDArray[Any]], dtype: type[np.generic]) -> torch.Tensor:
        padded = np.zeros((len(rows), length), dtype=dtype)
        for line, column in zip(padded, columns, strict=True):
            line[: len(column)] = column
        return torch.from_numpy(padded).to(device)

    return TrainBatch(
        input_ids=table([row.input_ids for row in rows], np.int64),
        attention_mask=table([np.ones(len(row)) for row in rows], np.bool_),
        loss_mask=table([row.trained for row in rows], np.bool_),
        sampling_logprobs=table([row.logprobs for row in rows], np.float32),
        advantages=table([row.advantages for row in rows], np.float32),
        weights=table([row.weights for row in rows], np.float32),
    )
