"""Depth first, edge by edge: what a turn's ratio costs there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.head import HeadResult, Which
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, VOCABULARY, make_trainer, relative, save_model


class TurnObjective:
    """The square of each turn's mean log-probability, and of its entropy; keeps how many targets it was shown."""

    def __init__(self, batch: TrainBatch) -> None:
        self.turn = batch.turn
        self.shown: list[int] = []
        self.seen: list[int] = []

    def __call__(self, logprobs: Tensor, entropy: Tensor, which: Which) -> Tensor:
        turn = self.turn[which]
        if torch.is_grad_enabled():
            self.shown.append(len(turn))
            self.seen += torch.arange(len(self.turn))[which].tolist()
        same = (turn[:, None] == turn[None]).to(logprobs.dtype)
        return ((same @ logprobs) / same.sum(dim=1) ** 1.5).square().sum() + (same @ entropy).square().sum()


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return make_trainer(save_model(FAMILIES["qwen3"], tmp_path), "depth-first", {"ratio": "turn"}).policy


def computed(policy: Policy, batch: TrainBatch, path: str) -> tuple[TurnObjective, HeadResult, Tensor]:
    for weight in policy.model.parameters():
        weight.grad = None
    objective = TurnObjective(batch)
    result = policy.backward(batch, named(path), objective, is_local=False)
    return objective, result, torch.cat([weight.grad.flatten() for weight in policy.model.parameters()])


def test_each_target_is_evaluated_once_however_many_edges_there_are(policy: Policy) -> None:
    rows = Rows.of(random_trees(1, VOCABULARY, num_turns=14), "grpo")
    [whole] = rows.forest.pack(rows.scores).micro_batches(10_000)
    batch = to_batch(whole)
    expected, of_rows, truth = computed(policy, batch, "runs")
    objective, result, gradient = computed(policy, batch, "depth-first")
    assert len(batch.edges) > 20
    assert expected.shown == [len(batch.target_ids)]
    assert sorted(objective.seen) == list(range(len(batch.target_ids)))
    assert len(objective.shown) > 10, "an edge's gradient waits for no more than what is below it"
    assert relative(gradient, truth) < 1e-5
    torch.testing.assert_close(result.loss, of_rows.loss)


def test_the_random_forest_has_turns_on_two_edges() -> None:
    """Else an edge at a time would do."""
    rows = Rows.of(random_trees(1, VOCABULARY, num_turns=14), "grpo")
    [whole] = rows.forest.pack(rows.scores).micro_batches(10_000)
    batch = to_batch(whole)
    starts = torch.tensor([start for start, *_ in batch.edges])
    edge = torch.bucketize(batch.predictors[batch.target_row], starts, right=True)
    edges = {int(turn): set(edge[batch.turn == turn].tolist()) for turn in batch.turn.unique()}
    assert any(len(found) > 1 for found in edges.values())
