"""The self-check agrees where a path is right and disagrees where positions, mask or windows are not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.paths import dense, named
from treegrpo_cli.train.paths.dense import DensePlan
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.self_check import Disagreement, check
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, FOREIGN_ATTENTION, OTHERS, VOCABULARY, make_trainer, save_model

DTYPES = ["float32", "bfloat16"]


def make_batch(seed: int) -> TrainBatch:
    rows = Rows.of(random_trees(seed, VOCABULARY, num_turns=12), "grpo")
    [whole] = rows.forest.pack(rows.scores).micro_batches(10_000)
    return to_batch(whole)


def found(policy: Policy, path: str, batch: TrainBatch, is_local: bool = True) -> Disagreement:
    """Check with the policy gradient's objective."""
    advantages = batch.gain + batch.penalty

    def objective(logprobs: Tensor, _entropy: Tensor, which: slice) -> Tensor:
        return -(advantages[which] * logprobs).sum()

    return check(policy, batch, named(path), objective, is_local=is_local)


def make_policy(config: Any, path: Path, dtype: str) -> Policy:
    return make_trainer(save_model(config, path), "chains", {}, model={"dtype": dtype}).policy


@pytest.mark.parametrize("name", FAMILIES | OTHERS)
def test_it_finds_rounding_alone_on_an_honest_model(name: str, tmp_path: Path) -> None:
    config = (FAMILIES | OTHERS)[name]
    for dtype, bound in zip(DTYPES, (1e-5, 0.1), strict=True):
        policy = make_policy(config, tmp_path, dtype)
        for seed, path in enumerate(("runs", "dense", "depth-first")):
            result = found(policy, path, make_batch(seed), is_local=seed % 2 == 0)
            assert result.refusal is None, (dtype, path)
            assert result.difference is not None
            assert 0 < result.difference < bound, (dtype, path)


def spoil_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number the tokens of the forest as if they were one text."""
    call = Decoder._call

    def spoilt(self: Decoder, token_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "tree_plan" in kwargs:
            positions = torch.arange(positions.shape[1])[None]
        return call(self, token_ids, positions, *args, **kwargs)

    monkeypatch.setattr(Decoder, "_call", spoilt)


def spoil_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every token see all that were laid out before it, siblings too."""
    visible = dense.visible

    def spoilt(batch: TrainBatch, window: int | None) -> Any:
        return visible(dataclasses.replace(batch, subtree_end=torch.full_like(batch.subtree_end, 10_000)), window)

    monkeypatch.setattr(dense, "visible", spoilt)


def forget_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every layer see whole paths."""
    attend = DensePlan.attend

    def spoilt(self: DensePlan, query: Tensor, key: Tensor, value: Tensor, scale: float, *rest: Any) -> Tensor:
        return attend(self, query, key, value, scale, None, rest[1])

    monkeypatch.setattr(DensePlan, "attend", spoilt)


def count_windows_in_the_order_of_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a window by places in the forest, not by depth."""
    visible = dense.visible

    def spoilt(batch: TrainBatch, window: int | None) -> Any:
        return visible(dataclasses.replace(batch, positions=torch.arange(len(batch.positions))), window)

    monkeypatch.setattr(dense, "visible", spoilt)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "spoil"),
    [
        ("qwen3", spoil_positions),
        ("qwen3-moe", spoil_mask),
        ("qwen2-window", forget_windows),
        ("mistral", count_windows_in_the_order_of_the_layout),
        ("gemma3", spoil_positions),
        ("gemma3", spoil_mask),
        ("gemma3", forget_windows),
    ],
)
def test_it_finds_what_is_spoilt(
    family: str, spoil: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(FAMILIES[family], tmp_path, dtype)
    honest = found(policy, "dense", make_batch(0))
    spoil(monkeypatch)
    result = found(policy, "dense", make_batch(0))
    assert honest.refusal is None
    assert result.difference is not None
    assert honest.difference is not None
    assert result.difference > 10 * honest.difference
    assert result.refusal == f"dense and chains differ by {result.difference:.1e} on this model"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_agrees_with_nothing(dtype: str, tmp_path: Path) -> None:
    policy = make_policy(FAMILIES["qwen3"], tmp_path, dtype)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    result = found(policy, "runs", make_batch(0))
    assert result == Disagreement(float("inf"), "runs and chains differ by inf on this model")


@pytest.mark.parametrize("path", ["runs", "dense", "depth-first"])
@pytest.mark.parametrize("keyword", FOREIGN_ATTENTION)
def test_attention_that_no_plan_computes_is_refused(keyword: str, path: str, tmp_path: Path) -> None:
    policy = make_policy(FOREIGN_ATTENTION[keyword], tmp_path, "float32")
    result = found(policy, path, make_batch(0))
    assert result.difference is None
    assert result.refusal is not None
    assert result.refusal.endswith(f"Attention attends with {keyword}")
