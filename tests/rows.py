"""Made-up chain rows: what a rollout step hands to the trainer, without a rollout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from treegrpo_cli.config import Config

VOCABULARY = 300


@dataclass
class Rows:
    """Chain rows in the core's shape: flat over tokens, `row_start` [B+1], `group` [B]."""

    row_start: NDArray[np.uint64]
    input_ids: NDArray[np.uint32]
    loss_mask: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    advantages: NDArray[np.float32]
    weights: NDArray[np.float32]
    group: NDArray[np.uint32]


def make_rows(seed: int, num_prompts: int = 4, rows_a_prompt: int = 3, mean_length: int = 24) -> Rows:
    """Return random rows of unequal length: prompt, then turns of sampled tokens and observations between."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(mean_length // 2, mean_length * 3 // 2, num_prompts * rows_a_prompt)
    start = np.concatenate([[0], np.cumsum(lengths)])
    total = int(start[-1])
    mask = rng.random(total) < 0.6
    for begin in start[:-1]:
        mask[begin : begin + 4] = False
        mask[begin + 4] = True
    return Rows(
        row_start=start.astype(np.uint64),
        input_ids=rng.integers(0, VOCABULARY, total).astype(np.uint32),
        loss_mask=mask,
        logprobs=np.where(mask, -rng.exponential(2.0, total), 0).astype(np.float32),
        advantages=np.where(mask, rng.normal(0, 1, total), 0).astype(np.float32),
        weights=rng.choice([1.0, 0.5], total).astype(np.float32),
        group=np.repeat(np.arange(num_prompts), rows_a_prompt).astype(np.uint32),
    )


def reorder(rows: Rows, order: list[int]) -> Rows:
    """Return the same rows in another order."""
    spans = [np.arange(int(rows.row_start[i]), int(rows.row_start[i + 1])) for i in order]
    index = np.concatenate(spans)
    return Rows(
        row_start=np.concatenate([[0], np.cumsum([len(span) for span in spans])]).astype(np.uint64),
        input_ids=rows.input_ids[index],
        loss_mask=rows.loss_mask[index],
        logprobs=rows.logprobs[index],
        advantages=rows.advantages[index],
        weights=rows.weights[index],
        group=rows.group[order],
    )


def make_config(model_dir: Path, **sections: dict[str, Any]) -> Config:
    """Return a config that trains the model on the CPU; `sections` override its tables."""
    tables: dict[str, dict[str, Any]] = {
        "model": {"path": str(model_dir), "device": "cpu"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"num_steps": 10, "prompts_per_step": 4},
    }
    for name, table in sections.items():
        tables[name] = tables.get(name, {}) | table
    return Config.model_validate(tables)
