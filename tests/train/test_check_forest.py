"""The small forest of a self-check shows what there may be to see, and is as long as the step's paths call for."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config
from treegrpo_cli.train.check_forest import is_outgrown, path_length, rows_of, small_forest, windows_of

from tests.steps import make_chains, make_step

CPU = torch.device("cpu")


@pytest.mark.parametrize("step", [make_step, make_chains])
@pytest.mark.parametrize("length", [64, 100])
def test_the_forest_has_siblings_and_a_short_row_whatever_the_step_has(step: Any, length: int) -> None:
    forest, scores = step(0)
    layout = forest.pack(scores)
    batch = small_forest([layout], length, CPU)
    assert batch is not None
    ends = [end - 1 for _, end in batch.runs]
    lengths = [int(batch.positions[end]) + 1 for end in ends]
    assert lengths == [length, length // 2 + length // 4, length // 8 * 2, length // 8]
    assert [int(batch.parent_token[start]) for start, _ in batch.runs] == [-1, length // 2 - 1, length // 8 - 1, -1]
    assert set(batch.token_ids.tolist()) <= set(layout.token_ids.tolist())
    assert len(batch.target_ids) == sum(
        end - start - (parent < 0) for (start, end), parent in zip(batch.runs, [-1, 0, 0, -1], strict=True)
    )


def test_a_step_without_text_has_no_forest() -> None:
    forest, scores = make_step(0)
    nothing = forest.pack(scores, prompts=np.zeros(0, dtype=np.uint32))
    assert small_forest([nothing], 64, CPU) is None


def test_lengths_where_a_model_may_change_are_read_off_its_settings() -> None:
    """Windows, chunks and scaled positions; layers are no lengths."""
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 77}
    config = Qwen2Config(
        sliding_window=40, use_sliding_window=True, max_window_layers=3, rope_parameters=rope, attention_chunk_size=99
    )
    assert windows_of(config) == [40, 77, 99]


@pytest.mark.parametrize(
    ("longest", "max_tokens", "max_positions", "expected"),
    [
        (10, 1000, None, 64),
        (300, 1000, None, 300),
        (401, 1000, None, 800),  # past a window of 400, and well so
        (401, 500, None, 500),
        (401, 1000, 600, 600),
        (300, 20, None, 64),
        (10, 1000, 20, 20),
    ],
)
def test_the_longest_path_of_a_check(longest: int, max_tokens: int, max_positions: int | None, expected: int) -> None:
    assert path_length(longest, [400], max_tokens, max_positions) == expected


def test_a_check_is_outgrown_by_twice_the_length_or_a_window() -> None:
    assert not is_outgrown(100, 200, [])
    assert is_outgrown(100, 201, [])
    assert is_outgrown(100, 102, [101])
    assert is_outgrown(100, 101, [100])
    assert not is_outgrown(101, 110, [100])


@pytest.mark.parametrize(("side_by_side", "expected"), [(1, [[0], [1], [2], [3]]), (2, [[0, 3], [1, 2]])])
def test_rows_are_all_targets_in_parts(side_by_side: int, expected: list[list[int]]) -> None:
    """The longest row is the first, and beside it stands the shortest."""
    forest, scores = make_step(0)
    batch = small_forest([forest.pack(scores)], 64, CPU)
    assert batch is not None
    parts = rows_of(batch, side_by_side)
    assert sorted(place for _, places in parts for place in places.tolist()) == list(range(len(batch.target_ids)))
    for (part, places), runs in zip(parts, expected, strict=True):
        at = part.predictors[part.target_row]
        assert torch.equal(at, batch.predictors[batch.target_row][places])
        assert torch.equal(part.target_ids, batch.target_ids[places])
        owners = {number for token in at.tolist() for number, (a, b) in enumerate(batch.runs) if a <= token < b}
        assert owners == set(runs)
