"""The layouts of a step -> a small forest of the same text that shows what a path may get wrong.

Its shape is made and not found: a step's trees may have no siblings, or none that fit the check's memory. With a text
of L tokens, letters for what is equal:

    row 1   aaaaaaaaaaaaaaaa    L, as long as the step's longest path, or longer
    row 2   aaaaaaaabbbb        a sibling from the middle on
    row 3   aacc                another, far shorter, from further up
    row 4   dd                  a tree of its own
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli._core import NO_PARENT, Forest, Layout
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.types import TrainBatch

LEAST_TOKENS = 64
"""Tokens of the longest path at least: a forest of a few tokens shows little, and costs as much."""

WHOLE = 2**40
"""Tokens of a micro-batch: the forest is never cut."""


def path_length(longest: int, windows: Sequence[int], max_tokens: int, max_positions: int | None) -> int:
    """Return the tokens of the longest path that shall be computed for a step's longest.

    Where a step passes one of the model's windows, twice the window: a few tokens beyond it hardly show. No more than
    `max_tokens` and the model's positions.
    """
    passed = [2 * window for window in windows if window < longest]
    wanted = min(max([LEAST_TOKENS, longest, *passed]), max(LEAST_TOKENS, max_tokens))
    return wanted if max_positions is None else min(wanted, max_positions)


def is_outgrown(checked: int, wanted: int, windows: Sequence[int]) -> bool:
    """Whether paths of so many tokens call for another check: they are twice as long, or pass a window."""
    return wanted > 2 * checked or any(checked <= window < wanted for window in windows)


def windows_of(config: Any) -> list[int]:
    """Lengths at which a model may begin to compute otherwise: sliding windows, chunks, scaled positions."""
    return sorted({value for name, value in _numbers(config.to_dict()) if _is_window(name) and value > 0})


def _is_window(name: str) -> bool:
    return ("window" in name or "chunk" in name or name == "original_max_position_embeddings") and "layer" not in name


def _numbers(table: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _numbers({str(key): part for key, part in value.items()})
        elif type(value) is int:
            yield name, value


def small_forest(layouts: Sequence[Layout], length: int, device: torch.device) -> TrainBatch | None:
    """Return the forest whose longest path has `length` tokens, from a step's text; None where the step has none."""
    texts = [text for text in map(_longest_path, layouts) if len(text)]
    if not texts or length < 2:
        return None
    text = np.resize(max(texts, key=len), length)
    pool = np.concatenate([layout.token_ids for layout in layouts])
    rows = [
        text,
        _branch(text[: length // 2], text, pool, length // 4),
        _branch(text[: length // 8], text, pool, length // 8),
        _branch(text[:0], text, pool, max(2, length // 8)),
    ]
    return _batch([row for row in rows if len(row) > 1], device)


def _longest_path(layout: Layout) -> NDArray[np.uint32]:
    """The tokens from a root to the token that has most of them above it."""
    if len(layout.token_ids) == 0:
        return layout.token_ids
    parents, path = layout.parent_token, [int(layout.positions.argmax())]
    while parents[path[-1]] != NO_PARENT:
        path.append(int(parents[path[-1]]))
    return layout.token_ids[path[::-1]]


def _branch(
    above: NDArray[np.uint32], text: NDArray[np.uint32], pool: NDArray[np.uint32], count: int
) -> NDArray[np.uint32]:
    """What is above, and `count` other tokens of the step's than the text goes on with."""
    others = np.flatnonzero(pool != text[len(above)])
    start = int(others[len(others) // 2]) if len(others) else 0
    return np.concatenate([above, np.resize(np.roll(pool, -start), count)])


def _batch(rows: Sequence[NDArray[np.uint32]], device: torch.device) -> TrainBatch:
    """All tokens are targets but the first of each tree."""
    row_start = np.cumsum([0, *map(len, rows)]).astype(np.uint64)
    sampled = np.ones(int(row_start[-1]), dtype=np.bool_)
    sampled[row_start[:-1]] = False
    forest, _ = Forest.from_chains(
        row_start=row_start,
        token_ids=np.concatenate(rows).astype(np.uint32),
        sampled=sampled,
        prompt=np.array([int(row[0] != rows[0][0]) for row in rows], dtype=np.uint32),
        reward=np.zeros(len(rows)),
    )
    advantage = np.ones(forest.num_nodes)
    [micro] = forest.pack(forest.given_scores(advantage, leaf_level=True)).micro_batches(WHOLE)
    return to_batch(micro, device)


def rows_of(batch: TrainBatch, side_by_side: int) -> list[tuple[TrainBatch, Tensor]]:
    """Return the batch in parts that chains compute, so many rows in each, and which of its targets each has.

    Every run that is read is a row: the longest beside the shortest, the next longest beside the next shortest.
    """
    return [_only(batch, runs) for runs in _groups(batch, side_by_side)]


def _groups(batch: TrainBatch, size: int) -> Iterator[list[int]]:
    length = batch.host.positions[[end - 1 for _, end in batch.runs]]
    waiting = sorted(set(_run_of(batch).tolist()), key=lambda run: int(length[run]))
    while waiting:
        yield [waiting.pop(0 if number % 2 else -1) for number in range(min(size, len(waiting)))]


def _run_of(batch: TrainBatch) -> NDArray[np.int64]:
    """The run of each predictor, [P]."""
    return np.searchsorted([start for start, _ in batch.runs], batch.host.predictors, side="right") - 1


def _only(batch: TrainBatch, runs: Sequence[int]) -> tuple[TrainBatch, Tensor]:
    """The batch with the targets of some of its runs, and which targets these are."""
    host, device = batch.host, batch.token_ids.device
    kept = np.isin(_run_of(batch), runs)
    places = np.flatnonzero(kept[host.target_row])
    chosen = replace(
        host,
        predictors=host.predictors[kept],
        target_row=(np.cumsum(kept) - 1)[host.target_row[places]],
        turn=host.turn[places],
    )
    at = torch.from_numpy(places).to(device)
    columns = ("target_ids", "sampling_logprobs", "gain", "penalty", "weights", "turn")
    values: dict[str, Any] = {name: getattr(batch, name)[at] for name in columns}
    for name in ("predictors", "target_row"):
        values[name] = torch.from_numpy(getattr(chosen, name)).to(device)
    return replace(batch, host=chosen, **values), at
